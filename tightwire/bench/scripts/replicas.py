"""What a script asks of whoever keeps its replicas in step: stock DDP, or Tightwire under a plan."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tightwire._attach import attach
from tightwire.runtime import Run

DDP = "ddp"
STEPS = 6

# A script builds a model, trains it inside `Replicas.of`, and returns what was trained and the last loss.
Script = Callable[["Replicas"], tuple[nn.Module, Tensor]]


@dataclass
class Replicas:
    """Runs one script under one plan.

    Attributes:
        plan: `ddp`, or the text of a plan.
        rank: of this process.
        size: number of processes.
        runs: made so far.
    """

    plan: str
    rank: int
    size: int
    runs: list[Run] = field(default_factory=list)
    _accumulate: list[Callable[[], contextlib.AbstractContextManager[object]]] = field(default_factory=list)

    @contextlib.contextmanager
    def of(
        self, model: nn.Module, optimizer: Optimizer | Sequence[Optimizer], *, unused: bool = False
    ) -> Iterator[nn.Module]:
        """Inside, the yielded module trains in step with those on the other ranks.

        Args:
            model: the same on every rank.
            optimizer: of its parameters, or several.
            unused: whether some parameters take no part in some passes, which DDP must be told.
        """
        if self.plan == DDP:
            ddp = nn.parallel.DistributedDataParallel(model, find_unused_parameters=unused)
            self._accumulate.append(ddp.no_sync)
            yield ddp
            return
        with attach(model, optimizer, self.plan) as run:
            self.runs.append(run)
            self._accumulate.append(run.accumulate)
            yield model

    def accumulate(self) -> contextlib.AbstractContextManager[object]:
        """Inside, backward passes stay on this rank: DDP's `no_sync`, Tightwire's `accumulate`."""
        return self._accumulate[-1]()

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside, the model is the one that all ranks would evaluate."""
        with contextlib.ExitStack() as stack:
            for run in self.runs:
                stack.enter_context(run.evaluating())
            yield

    def wait(self) -> None:
        """Waits for means, where a schedule lets them come later, so that gradients may be looked at."""
        for run in self.runs:
            run.wait()

    def batches(self, *shape: int) -> Iterator[Tensor]:
        """Yields this rank's share of the data: a normal tensor of `shape` for every step."""
        for step in range(STEPS):
            yield torch.randn(shape, generator=self.dice(step))

    def tokens(self, vocabulary: int, *shape: int) -> Iterator[Tensor]:
        """Yields this rank's share of texts: whole numbers of `shape` for every step."""
        for step in range(STEPS):
            yield torch.randint(vocabulary, shape, generator=self.dice(step))

    def dice(self, step: int) -> torch.Generator:
        """Returns a generator of this rank's own."""
        return torch.Generator().manual_seed(1000 * self.rank + step)
