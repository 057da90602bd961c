"""The libraries of other people's trainers: what is not installed says which extra brings it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def needed(library: str, extra: str) -> Iterator[None]:
    """Inside, `library` is imported.

    Raises:
        ModuleNotFoundError: it is not installed; says what to install.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != library:
            raise
        raise ModuleNotFoundError(
            f"Tightwire's part for {library} was imported, and {library} is not installed: pip install "
            f"'tightwire[{extra}]'.",
            name=error.name,
        ) from None
