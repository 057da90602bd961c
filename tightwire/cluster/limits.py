"""Which numbers a cluster can have, and how others are refused: by name, asking back for the unit."""

from __future__ import annotations

import math

from tightwire.errors import FileError
from tightwire.units import print_rate

# Of one worker's line, and of what joins groups of workers. In a file, more is more likely to be in the wrong unit than
# true: a device of 2026 has 1.8 TB/s each way to its node, a rack of 72 of them 130 TB/s. What-ifs may go beyond.
MAX_BANDWIDTH_BYTES_PER_S = 1e13
MAX_FABRIC_BYTES_PER_S = 1e15
FASTEST_CARD_BYTES_PER_S = 200e9
MAX_LATENCY_S = 10.0
MAX_WORKERS = 1_000_000


def require_range(field: str, value: float, low: float, high: float) -> None:
    """Refuses a value outside `low` … `high`, or not a number.

    Raises:
        FileError: names the field, the value and the range.
    """
    if not low <= value <= high:
        has_unit = field.endswith(("_s", "_bytes", "_byte", "_element", "_hour", "_across"))
        ask = "; look at the unit in the field's name" if has_unit else ""
        raise FileError(f"{field}: {_shown(value)} is outside {_shown(low)} … {_shown(high)}{ask}.")


def require_bandwidth(field: str, bytes_per_s: float) -> None:
    """Refuses bandwidths that would never move anything.

    Raises:
        FileError: names the field.
    """
    if not 0 < bytes_per_s < math.inf:
        raise FileError(
            f"{field}: {bytes_per_s} bytes per second would never move anything; write more than 0."
        )


def require_plausible(field: str, bytes_per_s: float, most: float = MAX_BANDWIDTH_BYTES_PER_S) -> None:
    """Refuses bandwidths that nothing has.

    Raises:
        FileError: names the field and its unit.
    """
    if bytes_per_s > most:
        raise FileError(
            f"{field}: {bytes_per_s:g} bytes per second is {print_rate(bytes_per_s)}, and nothing here has more than "
            f"{print_rate(most)}; the unit is bytes per second, an eighth of bits per second."
        )


def _shown(value: float) -> str:
    if 1e300 <= abs(value) < math.inf:
        return "a number of hundreds of digits"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
