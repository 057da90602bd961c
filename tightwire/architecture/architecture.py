"""The architecture contract: a plan's answer to "who talks to whom"."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from tightwire.answers import ArchitectureAnswer
from tightwire.architecture.allreduce.builders.synthesis.wiring import Wiring
from tightwire.architecture.allreduce.program import Program
from tightwire.compression.codec import Codec
from tightwire.transport.switched import Switch

if TYPE_CHECKING:
    from tightwire.transport.base import Transport


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is known of the workers when averagers are built; equal on all ranks, so that all choose alike.

    Attributes:
        num_ranks: how many.
        workers_per_node: consecutive ranks on one host; 0 where nobody told. The last host may have fewer.
        wiring: links and routes between the ranks; None where nobody told.
        switch: that adds for the workers; None where there is none.
        costs: measured α in seconds and β in seconds per byte that the busiest rank sends, by program.
    """

    num_ranks: int
    workers_per_node: int = 0
    wiring: Wiring | None = None
    switch: Switch | None = None
    costs: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Architecture(ArchitectureAnswer, abc.ABC):
    """An answer to "who talks to whom": how a mean, or what stands for it, comes about."""

    @property
    def is_levelled(self) -> bool:
        """Whether it must be told who sits with whom."""
        return False

    @property
    def needs_nodes(self) -> bool:
        """Whether whole nodes must stay together, so that members cannot come and go alone."""
        return self.is_levelled

    def fitted(self, num_ranks: int) -> Self:
        """Returns it as so many members that come and go carry it out: with no more owners than that."""
        return self

    @abc.abstractmethod
    def program(self, codec: Codec, num_ranks: int) -> Program:
        """Returns the program by which `num_ranks` workers average messages of `codec`, where all wait for all.

        Raises:
            PlanError: a number of ranks for which there is none, with the legal ones.
        """

    def program_for(self, codec: Codec, numel: int, itemsize: int, setting: Setting) -> Program:
        """Returns the program for one bucket, where it depends on its size or on who sits with whom.

        Args:
            codec: whose messages it carries.
            numel: elements of the bucket.
            itemsize: bytes of each.
            setting: what is known of the workers, alike on all of them.

        Raises:
            PlanError: as `program`, or a setting that does not tell what the program needs.
        """
        return self.program(codec, setting.num_ranks)

    def connect(self, transport: Transport, setting: Setting) -> Transport:
        """Opens the connections for one lane of buckets. Every rank, in the same order.

        Raises:
            PlanError: a setting that does not tell what the connections need.
        """
        return transport.channel()
