"""Elastic averaging SGD: workers explore, drawn to a common centre."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tightwire.errors import PlanError
from tightwire.sync.rounds import Rounds, require_steps

# β = n·α of the paper's experiments.
SHARED_RATE = 0.9


@dataclass(frozen=True)
class EASGD(Rounds):
    """Every tau steps x ← x − α(x − c), c ← c + Σ α(x − c) (Zhang et al., eqs. 5 and 6, synchronous).

    The centre c is what is evaluated, and what all replicas are at the end. Every worker holds a copy of it. The
    momentum form (EAMSGD) is this policy with Nesterov momentum in the worker's own optimizer:
    `torch.optim.SGD(…, momentum=0.99, nesterov=True)`; the force acts on x, not on the velocity, as in the paper.

    Equation 5, and the authors' code (github.com/sixin-zh/mpiT), take force and gradient of a step at the same x. Here
    the force acts when a round ends, and the next gradient is that of where it led: otherwise a copy of every force
    would wait for a step, also in checkpoints. Both agree up to η·α times the curvature.

    Args:
        tau: local steps between exchanges.
        alpha: the force, as a share of the distance; 0: 0.9 over the number of workers, as in the paper. At 1 over that
            number, the most that there is, the centre is the workers' mean after every exchange.
    """

    name: ClassVar[str] = "easgd"
    title: ClassVar[str] = "elastic force to a common centre; with a Nesterov optimizer, its momentum form"
    paper: ClassVar[str] = (
        "Zhang, Choromanska & LeCun, Deep Learning with Elastic Averaging SGD, arXiv:1412.6651"
    )
    promise: ClassVar[str] = (
        "Explores more than bsp, and learns as well with 10 to 64 steps between exchanges (Zhang et al. "
        "2015)."
    )
    seen: ClassVar[str] = "Not seen: 100 exchanges are too few for so loose a tie."
    example: ClassVar[str] = "easgd:8"
    elastic: ClassVar[bool] = True

    tau: int = 10
    alpha: float = 0.0

    def __post_init__(self) -> None:
        require_steps(self, "tau", self.tau)
        if not 0 <= self.alpha < 1:
            raise PlanError(f"{self}: alpha is a share of the distance to the centre, from 0 to below 1.")

    def force(self, workers: int) -> float:
        """Returns α among this many workers.

        Raises:
            PlanError: so strong a force overshoots: the centre would leave the workers' mean behind.
        """
        alpha = self.alpha or SHARED_RATE / workers
        if alpha * workers > 1:
            raise PlanError(
                f"{self} among {workers} workers overshoots: the centre moves {alpha * workers:.2f} times its distance "
                f"from their mean. Write alpha=0 or at most {1 / workers:.3g}."
            )
        return alpha

    @property
    def steps_per_round(self) -> int:  # noqa: D102
        return self.tau
