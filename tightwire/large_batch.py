"""Large batches: fewer rounds for the same samples. The rules; LARS and LAMB come from libraries.

With n workers a batch is n times as large, so that an epoch has an n-th of the rounds. These rules say what the
learning rate must then be; they give factors for `torch.optim.lr_scheduler.LambdaLR`, and sizes for a loader:

    scheduler = LambdaLR(optimizer, linear_scaling(workers, warmup_steps=500))

Layer-wise rates for batches beyond some thousands (LARS, You et al., arXiv:1708.03888; LAMB, arXiv:1904.00962) are
optimizers, and any `torch.optim` optimizer goes with any plan: take them from a kept library, such as
`pytorch_optimizer`'s `LARS` and `Lamb`, or `timm.optim`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tightwire.errors import PlanError


def linear_scaling(workers: int, *, warmup_steps: int = 0) -> Callable[[int], float]:
    """Returns the factor of the learning rate by step: k for k times the batch, reached from 1 (Goyal et al. 2017).

    Args:
        workers: how many times as large the batch is as the one that the rate was tuned for (the paper's k).
        warmup_steps: steps in which the factor grows linearly; five epochs in the paper.

    Raises:
        PlanError: no workers, or a negative number of steps.

    >>> [linear_scaling(8, warmup_steps=4)(step) for step in (0, 2, 4, 100)]
    [1.0, 4.5, 8.0, 8.0]
    """
    _require(workers >= 1 and warmup_steps >= 0, f"scaling for {workers} workers over {warmup_steps} steps")

    def factor(step: int) -> float:
        return float(workers) if step >= warmup_steps else 1.0 + (workers - 1) * step / warmup_steps

    return factor


def growing_batch(
    batch: int, *, at: Sequence[int], by: float, most: int
) -> Callable[[int], tuple[int, float]]:
    """Returns (batch, factor of the rate) by step: grow the batch where the rate would decay (Smith et al. 2018).

    Args:
        batch: at first.
        at: steps at which a schedule would divide the rate by `by`.
        by: how many times the batch grows at each of them.
        most: the largest batch that memory holds; what is missing from there on, the rate decays.

    Raises:
        PlanError: a batch that cannot grow.

    >>> growing_batch(64, at=(100, 200, 300), by=4, most=1024)(250)
    (1024, 1.0)
    >>> growing_batch(64, at=(100, 200, 300), by=4, most=1024)(300)
    (1024, 0.25)
    """
    _require(1 <= batch <= most and by > 1, f"a batch of {batch} growing {by} times up to {most}")
    _require(list(at) == sorted(at), f"steps {list(at)}, which must ascend,")

    def sizes(step: int) -> tuple[int, float]:
        wanted = batch * by ** sum(step >= milestone for milestone in at)
        size = min(round(wanted), most)
        return size, min(1.0, size / wanted)

    return sizes


def _require(sane: bool, what: str) -> None:
    if not sane:
        raise PlanError(f"{what} cannot be; see the arguments of this rule.")
