"""The published measurements that come with the package."""

from __future__ import annotations

import csv
from importlib import resources


def read(name: str) -> list[dict[str, str]]:
    """Returns the rows of a file in `validate/data`, by column."""
    file = resources.files("tightwire.validate") / "data" / name
    with file.open(encoding="utf-8") as lines:
        return list(csv.DictReader(lines))
