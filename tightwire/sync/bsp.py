"""Bulk synchronous parallel: agree on the mean gradient at every step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tightwire.sync.sync import Quantity, Sync


@dataclass(frozen=True)
class Bsp(Sync):
    """Every step is made with the mean gradient; replicas stay bit-identical."""

    name: ClassVar[str] = "bsp"
    title: ClassVar[str] = "agree on the mean gradient every step"
    paper: ClassVar[str] = "Valiant, A Bridging Model for Parallel Computation, CACM 1990"
    exchanges: ClassVar[frozenset[Quantity]] = frozenset({"gradients"})
    needs_agreement: ClassVar[bool] = False

    def averages_gradients(self, step: int) -> bool:  # noqa: D102
        return True

    def averages_parameters(self, step: int) -> bool:  # noqa: D102
        return False

    @property
    def steps_per_round(self) -> int:  # noqa: D102
        return 1
