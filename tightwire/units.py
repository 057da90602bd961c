"""Units: the one place where sizes are read and printed."""

from __future__ import annotations

import re

BYTE_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def parse_bytes(text: str) -> int:
    """Reads `4194304`, `4MiB` or `25MB` as a number of bytes.

    Raises:
        ValueError: not a whole number with one of the known units.
    """
    match = re.fullmatch(r"([0-9]+)([A-Za-z]*)", text.strip())
    if not match or match[2] not in BYTE_UNITS:
        raise ValueError(
            f"{text!r} is no size; write a whole number and one of {', '.join(u for u in BYTE_UNITS if u)}"
        )
    return int(match[1]) * BYTE_UNITS[match[2]]


def print_bytes(num_bytes: int) -> str:
    """Prints a size with the largest unit that divides it: `4MiB`, `25MB`, `1000003`."""
    units = sorted(BYTE_UNITS.items(), key=lambda unit: -unit[1])
    unit, size = next((u, s) for u, s in units if (num_bytes and num_bytes % s == 0) or s == 1)
    return f"{num_bytes // size}{unit if size > 1 else ''}"
