"""Members of every family as a user would add them: importing this module registers them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from tightwire.architecture import PROGRAMS, Program, ProgramRecipe, build
from tightwire.architecture.gossip.graphs import GRAPHS, Graph, GraphRecipe, ring
from tightwire.catalogue import register
from tightwire.compression import Codec, Combine, Stage
from tightwire.schedule import Partition, Schedule, TensorFacts, Wire
from tightwire.schedule.scheduler import each
from tightwire.study.studies import STUDIES
from tightwire.study.study import Study
from tightwire.sync.sync import EngineKind, PredictorKind, Sync

if TYPE_CHECKING:
    from torch import Tensor


@register
@dataclass(frozen=True)
class Plain(Codec):
    """Sends values as they are."""

    name: ClassVar[str] = "outside-codec"
    title: ClassVar[str] = "values as they are"
    paper: ClassVar[str] = "nobody's"
    combine: ClassVar[Combine] = "exact"
    lossless: ClassVar[bool] = True

    def wire_bytes(self, numel: int, itemsize: int = 4) -> int:
        return numel * itemsize

    def encode(self, x: Tensor, message: Tensor, *, seed: int = 0) -> None:
        message.copy_(x.view(torch.uint8))

    def decode(self, message: Tensor, out: Tensor, *, add: bool = False) -> None:
        values = message.clone().view(out.dtype)
        out.add_(values) if add else out.copy_(values)

    def normal_error(self, numel: int) -> float:
        return 0.0


@register
@dataclass(frozen=True)
class Nothing(Stage):
    """Does nothing."""

    name: ClassVar[str] = "outside-stage"
    title: ClassVar[str] = "nothing"
    paper: ClassVar[str] = "nobody's"
    place: ClassVar[int] = 99


@register
@dataclass(frozen=True)
class Often(Sync):
    """Agrees at every step."""

    name: ClassVar[str] = "outside-sync"
    title: ClassVar[str] = "the mean gradient of every step"
    paper: ClassVar[str] = "nobody's"
    engine: ClassVar[EngineKind] = "gradients"
    predictor: ClassVar[PredictorKind] = "bulk"

    @property
    def steps_per_round(self) -> int:
        return 1

    @property
    def deviation(self) -> float:
        return 1.0


@register
@dataclass(frozen=True)
class Each(Schedule):
    """Moves each tensor alone."""

    name: ClassVar[str] = "outside-schedule"
    title: ClassVar[str] = "each tensor alone"
    paper: ClassVar[str] = "nobody's"

    def partition(self, tensors: Sequence[TensorFacts], wire: Wire | None = None) -> Partition:
        return each(tensors)


def program(num_ranks: int) -> Program:
    """Returns a ring."""
    return build("ring", num_ranks)


def graph(num_ranks: int) -> Graph:
    """A ring by another name."""
    return ring(num_ranks)


PROGRAMS["outside-program"] = ProgramRecipe(build=program, title="A ring by another name", paper="nobody's")
GRAPHS["outside-graph"] = GraphRecipe(build=graph)
STUDIES["outside-study"] = Study(
    name="outside-study",
    about="Whether a study from outside is found.",
    workers=2,
    plans=("bsp/allreduce/outside-codec",),
    dense="bsp",
)
