"""Keys that a file's reader does not know; many readers drop them silently."""

from typing import Any


def find_unknown(where: str, record: Any, known: set[str]) -> list[str]:
    """Returns a problem for each key of `record`, at `where` in its file, that is not among the known ones."""
    if not isinstance(record, dict):
        return [f"{where}: must hold keys"]
    return [
        f"{where}.{key}: unknown key; known are {', '.join(sorted(known))}" for key in sorted(record.keys() - known)
    ]
