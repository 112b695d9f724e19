"""Solutions of the exercises whose function the library does not have."""
