"""One-line mutations of the library, each of which must turn at least one test red."""
