"""Whether a device met a message that cannot be: known to the device at once, and to the host when it looks anyway.

A kernel that finds a wrong index sets this thread's flag, and what would place the values then does nothing. To ask
for the answer at once, the host would have to wait for the whole stream; `FiniteCheck` copies the flag beside its own.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_local = threading.local()


def flag_of(at: torch.device) -> Tensor:
    """Returns this thread's flag on a device, (1,) int32: not zero where a message could not be decoded."""
    import torch

    flags: dict[str, Tensor] = _local.__dict__.setdefault("flags", {})
    if str(at) not in flags:
        flags[str(at)] = torch.zeros(1, dtype=torch.int32, device=at)
    return flags[str(at)]


def flag_if_any(at: torch.device) -> Tensor | None:
    """Returns this thread's flag, if any kernel of this thread has looked at a message there."""
    flags: dict[str, Tensor] = _local.__dict__.get("flags", {})
    return flags.get(str(at))
