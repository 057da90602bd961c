"""Asynchronous DiLoCo: workers send what they changed when they have changed it, and a server steps at once."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace
from typing import ClassVar, final

from tightwire.errors import PlanError
from tightwire.sync.rounds import require_steps
from tightwire.sync.served import MANY_WORKERS, Served, require


@final
@dataclass(frozen=True)
class AsyncDiLoCo(Served):
    """H inner steps; then a worker sends x_start − x_end to a server, which steps at once, and goes on from the result.

    Nobody waits for another worker. A change is old when it comes: others' were applied since its worker read. Outer
    momentum over such changes hurts, so that the server applies each change as a plain step of 1/N of it, gathers them,
    and makes one momentum step from every N of them, for N workers (delayed Nesterov, algorithm 3):

        Δ ← Δ + g;  in every N-th update m ← β m + Δ/N, x ← x − ε((1 − cN + c) β m + g/N), Δ ← 0;
        in the others x ← x − ε(c β m + g/N)

    With c = 0, N changes from one x make exactly the outer step of `diloco`. With `dynamic=true` a worker that is
    slower than the fastest by a factor v makes ⌊H/v⌋ steps (dynamic local updates), so that changes come equally often
    from all. The inner optimizer stays with its worker and keeps its state.

    The paper reports, for models up to 150 M parameters on C4 and workers of unlike speed, the loss per update of
    synchronous DiLoCo in much less time, and that neither part does so alone. It differs in that there a worker's inner
    learning rate follows a schedule of the server's count of updates; here it is the user's, by the worker's own steps.
    The update above is from memory of the paper, and is held to its abstract and to `diloco`.

    Args:
        H: inner steps between two changes.
        outer_lr: ε.
        outer_momentum: β.
        activation: c, the share of the momentum step that each of the N updates makes, from 0 to 1/N.
        dynamic: whether slower workers make fewer steps.
    """

    name: ClassVar[str] = "async-diloco"
    title: ClassVar[str] = (
        "H inner steps, then a server steps at once with the change, and by momentum every n changes"
    )
    paper: ClassVar[str] = (
        "Liu et al. 2024, Asynchronous Local-SGD Training for Language Modeling, arXiv:2401.09135, algorithm 3"
    )
    promise: ClassVar[str] = (
        "The loss of synchronous local SGD per update, sooner where devices differ (Liu et al. 2024)."
    )
    seen: ClassVar[str] = "Not seen here: five rounds a worker are too few for delayed momentum."
    example: ClassVar[str] = "async-diloco:32"
    sends_changes: ClassVar[bool] = True

    H: int
    _: KW_ONLY
    outer_lr: float = 0.7
    outer_momentum: float = 0.9
    activation: float = 0.0
    dynamic: bool = False

    def __post_init__(self) -> None:
        require_steps(self, "H", self.H)
        require(
            0 < self.outer_lr < float("inf") and 0 <= self.outer_momentum < 1,
            f"{self}: the outer rate is above 0, the momentum at least 0 and below 1, as in "
            "async-diloco:32,outer_lr=0.7,outer_momentum=0.9.",
        )
        require(
            0 <= self.activation <= 1,
            f"{self}: activation is from 0 (momentum steps in every n-th update) to 1/n.",
        )

    def fitted(self, workers: int) -> AsyncDiLoCo:
        """Returns the same, with momentum applied at most once per N updates."""
        return replace(self, activation=min(self.activation, 1 / workers))

    def quorum(self, workers: int) -> int:
        """Each change makes an update.

        Raises:
            PlanError: momentum would be applied more often than once per N updates.
        """
        is_asked = workers < MANY_WORKERS  # not of nobody in particular
        if is_asked and self.activation * workers > 1 + 1e-9:
            raise PlanError(
                f"{self} among {workers} workers applies momentum {self.activation * workers:.2f} times per {workers} "
                f"updates: write activation=0, or at most {1 / workers:.3g}."
            )
        return 0

    def rate(self, staleness: int, workers: int) -> float:
        """1: the outer step divides by N itself."""
        return 1.0

    @property
    def steps_per_round(self) -> int:  # noqa: D102
        return self.H

    @property
    def deviation(self) -> float:
        """A change is made of H steps, and as many were made by each of the others since its worker read."""
        return 2.0 * self.H
