"""The page of the experiments: tables and figures from their numbers."""


def write(results: dict, folder) -> None:
    """Nothing yet."""
