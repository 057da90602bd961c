"""The lists that laws walk: settings chosen here, and the example of every other member that the catalogue knows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from tightwire.answers import Axis, Member
from tightwire.catalogue import catalogue


def listed(axis: Axis, kind: type[Member], settings: Sequence[str]) -> list[str]:
    """Returns `settings`, and the example of each member of `kind` that none of them names.

    So a member is walked from the line that lists it on, in a setting of its own choosing.
    """
    named = {part.partition(":")[0] for text in settings for part in text.replace("/", "+").split("+")}
    others = [m for m in catalogue(axis).values() if issubclass(m, kind) and m.name not in named]
    return [*settings, *(member.example or member.name for member in others)]


@contextlib.contextmanager
def told(*case: object) -> Iterator[None]:
    """Adds to an error which case of a walk it comes from: a walk in one test costs less than a test for each case."""
    try:
        yield
    except Exception as error:
        error.add_note(f"in the case of {', '.join(map(str, case))}")
        raise
