"""Progress bars with rate and time left; plain lines every few seconds where there is no terminal."""

import sys
from collections.abc import Iterable

from tqdm import tqdm


def progress_bar(items: Iterable | None = None, *, stage: str, total: int | None = None, initial: int = 0) -> tqdm:
    """A tqdm bar named after the stage; off a terminal it prints a line every 10 s."""
    is_terminal = sys.stderr.isatty()
    return tqdm(
        items,
        desc=stage,
        total=total,
        initial=initial,
        mininterval=0.2 if is_terminal else 10.0,
        ncols=None if is_terminal else 110,
        ascii=not is_terminal,
        dynamic_ncols=is_terminal,
        leave=True,
    )
