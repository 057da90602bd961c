"""The sync contract: what is exchanged at which step."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import ClassVar, Literal

from tightwire.plan import Axis, Member

Quantity = Literal["gradients", "parameters"]


@dataclass(frozen=True)
class Sync(Member, abc.ABC):
    """An answer to "when do replicas agree". Steps are optimizer steps, counted from 1.

    Class attributes:
        exchanges: what workers ever agree on under this policy.
    """

    axis: ClassVar[Axis] = "sync"
    exchanges: ClassVar[frozenset[Quantity]]

    @abc.abstractmethod
    def averages_gradients(self, step: int) -> bool:
        """Whether `step` is made with the mean gradient of all workers."""

    @abc.abstractmethod
    def averages_parameters(self, step: int) -> bool:
        """Whether workers agree on the mean of their parameters after `step`."""

    @property
    @abc.abstractmethod
    def steps_per_round(self) -> int:
        """How many steps share one exchange."""
