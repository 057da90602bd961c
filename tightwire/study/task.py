"""The task contract: something real to learn without a download, split among workers, judged on what nobody saw."""

from __future__ import annotations

import abc
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

Split = Literal["alike", "unlike"]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a replica trains.

    Attributes:
        rank: of its worker.
        workers: how many there are.
        seed: of the initial weights and of the order of the data; the same for every plan that is compared.
        split: `alike` gives all workers shuffled shares of the data, `unlike` gives each a kind of its own.
    """

    rank: int
    workers: int
    seed: int = 0
    split: Split = "alike"

    @property
    def stream(self) -> int:
        """The seed of this worker's own draws."""
        return 1 + self.seed * 10_007 + self.rank


_drawing = threading.Lock()


def same_model(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Builds a model with initial weights that follow from the seed, also where workers are threads of one process."""
    import torch

    with _drawing, torch.random.fork_rng(devices=[]):  # torch has one generator per process
        torch.manual_seed(seed)
        return build()


class Replica(Protocol):
    """One worker's model and its share of the data."""

    @property
    def model(self) -> nn.Module:
        """What is trained."""

    def batch(self) -> tuple[Tensor, ...]:
        """Draws what the next step learns from."""

    def loss(self, model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        """Returns the loss of a batch under `model`, which is the replica's own or a wrapper of it."""

    def judge(self) -> float:
        """Returns the held-out metric of the model as it is."""


class Task(abc.ABC):
    """What is learned, and by how many steps.

    Class attributes:
        metric: what is measured on held-out data.
        higher_is_better: the direction of the metric.
        guess: the metric of equal chances for every outcome: whoever is no better has diverged.

    Attributes:
        name: in results and on the command line.
        steps: of training.
    """

    metric: ClassVar[str]
    higher_is_better: ClassVar[bool]
    guess: ClassVar[float]
    name: str
    steps: int

    @abc.abstractmethod
    def replica(self, place: Place) -> Replica:
        """Builds one worker's replica: the same weights on every rank, data of its own."""

    def has_diverged(self, metric: float | None) -> bool:
        """Whether a model is far worse than one that guesses: a loss beyond twice as much, or none that is finite."""
        return metric is None or (not self.higher_is_better and metric > 2 * self.guess)

    def is_learnt(self, metric: float | None) -> bool:
        """Whether a model with this metric knows more than one that guesses; None stands for NaN."""
        return metric is not None and (metric > self.guess) == self.higher_is_better
