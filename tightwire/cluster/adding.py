"""Switches that add: where in a cluster they are, and with what memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tightwire import files
from tightwire.cluster.limits import require_range
from tightwire.errors import FileError


@dataclass(frozen=True, kw_only=True)
class Adding:
    """What adds for the workers of a cluster: `allreduce:in-network` then sends each buffer up and down once.

    Attributes:
        levels: names of the cluster's levels whose switches add; none: the one switch of a cluster without levels.
        slots: chunks that a switch adds at a time; None: as many as its lines keep under way.
        slot_bytes: of the sums of each.
    """

    __pydantic_config__: ClassVar = files.STRICT

    levels: tuple[str, ...] = ()
    slots: int | None = None
    slot_bytes: int = 64 * 1024

    def __post_init__(self) -> None:
        if self.slots is not None and self.slots < 1:
            raise FileError(
                f"adding: a switch with {self.slots} slots has no memory to add in; give it one or more."
            )
        require_range("adding: slot_bytes", self.slot_bytes, 1024, 1e9)
