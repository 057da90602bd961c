"""What engines share: what is remembered by tensor name, and whether gradients are finite."""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from tightwire.averaging.bucket import BucketAverager
from tightwire.errors import AttachError
from tightwire.plan import Plan
from tightwire.runtime.context import RunContext

Named = Mapping[str, Mapping[str, Tensor]]

# From so many elements on, a tensor's sum takes less time than its share of a call for all norms.
LARGE = 1 << 15
# From so many on, PyTorch's threads share in a sum of one.
SHARED = 1 << 17
# What stages remember of squares of gradients; all else is of their own size.
SQUARES = frozenset({"variance v"})
_PLACE = operator.attrgetter("is_cpu", "dtype")


class UnfittingMemoryError(AttachError):
    """What was remembered is of another plan or model."""


def memory(averagers: Iterable[BucketAverager]) -> dict[str, dict[str, Tensor]]:
    """Returns copies, in host memory, of all that stages and averagers remember, by tensor name, then by kind."""
    return {
        name: {kind: kept.to("cpu", copy=True) for kind, kept in kinds.items()}
        for averager in averagers
        for name, kinds in averager.memory().items()
    }


def load_memory(averagers: Iterable[BucketAverager], state: Named) -> None:
    """Takes up what was remembered, by tensor name, however buckets were cut when it was saved.

    Raises:
        UnfittingMemoryError: names the tensors whose memory is missing, unknown or of another shape. Nothing is
            taken up then.
    """
    present = {name: kinds for a in averagers for name, kinds in a.memory().items()}
    if wrong := [
        name for name in sorted({*present, *state}) if _shapes(present, name) != _shapes(state, name)
    ]:
        raise UnfittingMemoryError(
            f"the checkpoint's memory does not fit this model and plan: that of {', '.join(wrong[:5])} differs; "
            "load it under the plan and the model it was saved with."
        )
    for name, kinds in present.items():
        for kind, kept in kinds.items():
            kept.copy_(state[name][kind])


def rescale(averagers: Iterable[BucketAverager], factor: float) -> None:
    """Brings what stages remember of gradients to other units, such as those of other weights; exact where 1."""
    if factor == 1.0:
        return
    for averager in averagers:
        for kinds in averager.memory().values():
            for kind, kept in kinds.items():
                if kind != "averager" and kept.is_floating_point():  # its start is of no size
                    kept.mul_(factor**2 if kind in SQUARES else factor)


def of_own_size(parameters: Mapping[str, Parameter], plan: Plan, context: RunContext) -> frozenset[str]:
    """Returns the parameters whose means have a size of their own: that of those who bring something is that of all."""
    return frozenset(
        name
        for name, parameter in parameters.items()
        if any(
            part.is_sized(tuple(parameter.shape)) for part in context.compression_of(name, parameter, plan)
        )
    )


def fitting(averagers: Iterable[BucketAverager], state: Named, *, what: str) -> Named:
    """Returns what was remembered, if it means the same among other members; else what is remembered now.

    Args:
        averagers: new ones.
        state: that was remembered.
        what: for the warning that says what is dropped.
    """
    present = memory(averagers)
    if all(_shapes(present, name) == _shapes(state, name) for name in {*present, *state}):
        return state
    warnings.warn(
        f"leftovers and momenta of {what} are dropped: they mean nothing among other members.", stacklevel=2
    )
    return present


def shared_part(own: Named, theirs: Named) -> dict[str, dict[str, Tensor]]:
    """Returns memory of nothing but what all have in common: zeros, and what averagers remember alike on all ranks.

    Args:
        own: whose kinds and shapes there are here.
        theirs: of the rank that has it.
    """
    return {
        name: {
            kind: theirs[name][kind].clone() if _is_shared(kind, name, theirs) else torch.zeros_like(kept)
            for kind, kept in kinds.items()
        }
        for name, kinds in own.items()
    }


def _is_shared(kind: str, name: str, theirs: Named) -> bool:
    return kind == "averager" and kind in theirs.get(name, {})


def _shapes(named: Named, name: str) -> dict[str, torch.Size]:
    return {kind: kept.shape for kind, kept in named.get(name, {}).items()}


def require_one_copy(optimizers: Iterable[Optimizer], what: str, instead: str) -> None:
    """Makes sure that averaging parameters averages the model.

    Raises:
        AttachError: an optimizer that keeps a second copy of the parameters (Schedule-Free's z), from which it makes
            them anew.
    """
    for optimizer in optimizers:
        if hasattr(type(optimizer), "eval") and hasattr(type(optimizer), "train"):
            raise AttachError(
                f"{type(optimizer).__name__} makes parameters anew from a copy of its own, which {what} would leave "
                f"behind on each worker; {instead}."
            )


def drop_unless_finite(parameters: Iterable[Parameter]) -> bool:
    """Drops all gradients if one has a NaN or an Inf, so that the step changes nothing; returns whether it did."""
    parameters = list(parameters)
    if have_finite_gradients(parameters):
        return False
    for parameter in parameters:
        parameter.grad = None
    return True


def have_finite_gradients(parameters: Iterable[Parameter]) -> bool:
    """Whether no gradient has a NaN or an Inf; on a GPU the host waits for it once."""
    gradients = [g for p in parameters if (g := p.grad) is not None]
    # Whatever is not finite makes a sum so, and sums run at the speed of memory. They may overflow where no element
    # has, and then the largest magnitude is asked, which takes twenty times as long.
    if math.isfinite(_sum_of(gradients)):
        return True
    return bool(get_total_norm([g for g in gradients if g.numel()], norm_type=math.inf).isfinite())


def load_finite_check() -> None:
    """Loads what `have_finite_gradients` needs; it takes most of a second, and within a step others would wait."""
    _sum_of([torch.zeros(1)])


def _sum_of(gradients: Sequence[Tensor]) -> float:
    """Returns something that is finite only if all gradients are."""
    most = math.inf if torch.get_num_threads() == 1 else SHARED
    quick = gradients if _are_quick(gradients, most) else [g for g in gradients if _are_quick([g], most)]
    found = 0.0
    if quick:
        from tightwire.kernels.totals import total  # loads numba, which `import tightwire` does not

        found = total(quick)
    if len(quick) == len(gradients):
        return found
    known = {id(g) for g in quick}
    others = [g for g in gradients if id(g) not in known]
    sums = [g.sum() for g in others if g.numel() >= LARGE]
    small = [g for g in others if g.numel() < LARGE]
    return found + torch.stack([*sums, *(torch._foreach_norm(small) if small else ())]).sum().item()


def _are_quick(gradients: Sequence[Tensor], most: float) -> bool:
    """Whether all are such as `total` takes, and below `most` elements; asked without a call of Python per tensor."""
    return (
        _are_plain(map(type, gradients), Tensor)
        and _are_plain(map(_PLACE, gradients), (True, torch.float32))
        and all(map(Tensor.is_contiguous, gradients))
        and max(map(Tensor.numel, gradients), default=0) < most
    )


def _are_plain(seen: Iterable[object], wanted: object) -> bool:
    return set(seen) <= {wanted}
