"""Optimizers whose second moment learns from exact gradients only, for plans that compress moving averages.

    optimizer = OneBitAdam(model.parameters(), lr=1e-3)
    with tw.attach(model, optimizer, "bsp/allreduce/onebit-adam:1000") as run:

Which rounds are exact is said once, by the plan: attaching tells the optimizer. Alone, or under a plan that sends
gradients, they are Adam and LAMB.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable
from typing import Any, final

import torch
from torch import Tensor

from tightwire.errors import AttachError, PlanError


def _always(step: int) -> bool:
    return True


class ExactVariance(torch.optim.Optimizer, abc.ABC):
    """Adam's moments, of which the second learns in some steps only.

    Attributes:
        learns: whether the second moment learns in a step, counted from 1: whether the step's gradients are exact,
            which whoever averages them says. The first always does.
    """

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        beta1, beta2 = defaults["betas"]
        if not (defaults["lr"] >= 0 and 0 <= beta1 < 1 and 0 <= beta2 < 1 and defaults["eps"] >= 0):
            raise PlanError(
                f"{type(self).__name__} cannot step with {defaults}: give lr and eps of 0 or more, and betas in [0, 1)."
            )
        self.learns: Callable[[int], bool] = _always
        super().__init__(params, {**defaults, "steps": 0})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Makes one step; returns what `closure` does, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            group["steps"] += 1
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, parameter.grad, group)
        return loss

    def _step(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = state["learnt"] = 0
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        beta1, beta2 = group["betas"]
        state["step"] += 1
        state["exp_avg"].lerp_(gradient, 1 - beta1)
        # A second moment of nothing would divide by zero: a parameter's first gradient is learnt from at any rate.
        learns = self.learns(group["steps"]) or state["learnt"] == 0
        if learns:
            state["learnt"] += 1
            state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        self._move(parameter, gradient, state, group, learns)

    @abc.abstractmethod
    def _move(
        self, parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any], learns: bool
    ) -> None:
        """Changes a parameter whose moments are up to date."""


def _deviation(square: Tensor, steps: int, group: dict[str, Any]) -> Tensor:
    """Returns √v̂ + ε, v̂ being an average over `steps` squares without its bias towards zero."""
    return square.sqrt().div_((1 - group["betas"][1] ** steps) ** 0.5).add_(group["eps"])


def _known(momentum: Tensor, square: Tensor) -> Tensor:
    """Returns the momentum where the variance has seen a gradient, and zero elsewhere.

    A codec sends something for every element, also for rows of an embedding that are never looked up; divided by a
    deviation of almost nothing, that would throw them far. The authors' code masks such rows by hand.
    """
    return torch.where(square > 0, momentum, 0.0)


@final
class OneBitAdam(ExactVariance):
    """Adam with decoupled weight decay, whose variance is frozen where gradients are compressed.

    Under `onebit-adam` it is 1-bit Adam (arXiv:2102.02888, Algorithm 1), under `zero-one-adam` 0/1 Adam without local
    steps (arXiv:2202.06009, Algorithm 1 with all steps in T_u), and under `local:16,state=momenta` its local steps.
    Biases towards zero are corrected, of the variance by the number of gradients that it learnt from; a step is made
    with the momentum that knows its gradient, as in Adam and the authors' code; the paper writes the one before. An
    element whose gradient was zero whenever the variance learnt does not move until it learns again.

    Under that policy a step also adds to u, what momenta moved since the workers agreed last, in `state["moved"]`:
    x = kept·x_start − u/(√v + ε), weight decay leaving the share `kept`, and `rates` sums step sizes likewise. Decay
    travels with u, so that a worker that made no steps ends where the others do; of the momentum it is no part.

    Attributes:
        gathers: whether steps add to u.

    Args:
        params: to optimize, or groups of them.
        lr: step size.
        betas: shares that stay of the averages; the first is that of the plan.
        eps: added to the deviation.
        weight_decay: per step and lr, as AdamW's.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.gathers = False
        self._looked_up, self._group_of = (0, 0), dict[Tensor, dict[str, Any]]()

    def moved(self, parameter: Tensor, start: Tensor) -> Tensor:
        """Returns (x_start − x)·(√v + ε), which is u but for weight decay; may share memory.

        Args:
            parameter: one of the optimizer's.
            start: its value where workers agreed last.
        """
        state = self.state[parameter]
        if "moved" not in state:
            return start - parameter
        decayed: Tensor = start * (1 - state["kept"]) * self._deviation_of(parameter)
        return decayed.add_(state["moved"])

    def settle(self, parameter: Tensor, start: Tensor, mean: Tensor) -> Tensor:
        """Makes the momentum that of the mean of all workers' `moved`, and begins a new sum; returns x_start − x.

        A parameter that did not move here keeps its momentum.
        """
        state = self.state[parameter]
        if not state:
            return mean
        deviation = self._deviation_of(parameter)
        if state.get("rates", 0.0) > 0:
            decayed = start * (1 - state["kept"]) * deviation
            state["exp_avg"].copy_(mean).sub_(decayed).div_(state["rates"])
        self.forget(parameter)
        return mean / deviation

    def forget(self, parameter: Tensor) -> None:
        """Begins a new sum where workers agree now; a momentum that is not finite begins anew too."""
        state = self.state[parameter]
        if state:
            state["moved"], state["rates"], state["kept"] = torch.zeros_like(parameter), 0.0, 1.0
            state["exp_avg"].nan_to_num_(0.0, 0.0, 0.0)

    def _deviation_of(self, parameter: Tensor) -> Tensor:
        if self._looked_up != (id(self.param_groups), len(self.param_groups)):  # loading makes new groups
            self._group_of = {p: group for group in self.param_groups for p in group["params"]}
            self._looked_up = (id(self.param_groups), len(self.param_groups))
        state = self.state[parameter]
        return _deviation(state["exp_avg_sq"], state["learnt"], self._group_of[parameter])

    def _move(
        self, parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any], learns: bool
    ) -> None:
        shrink = 1 - group["lr"] * group["weight_decay"]
        size = group["lr"] / (1 - group["betas"][0] ** state["step"])
        deviation = _deviation(state["exp_avg_sq"], state["learnt"], group)
        momentum = _known(state["exp_avg"], state["exp_avg_sq"])
        parameter.mul_(shrink).addcdiv_(momentum, deviation, value=-size)
        if self.gathers:
            if learns:
                raise AttachError(
                    f"a parameter of shape {tuple(parameter.shape)} has no variance yet, and local rounds of momenta "
                    "learn none: let exact rounds go before, as in "
                    "bsp/allreduce/zero-one-adam@1000~local:16,state=momenta/allreduce/doublesqueeze+ef."
                )
            if "moved" not in state:
                self.forget(parameter)
            state["moved"].mul_(shrink).add_(momentum, alpha=size)
            state["rates"] = state["rates"] * shrink + size
            state["kept"] *= shrink


@final
class OneBitLamb(ExactVariance):
    """LAMB, whose variance and layer-wise scale are frozen where gradients are compressed (arXiv:2104.06069).

    The frozen scale of a layer, an average of what it was while the variance learnt, is then adapted by how far a
    fresh variance, which learns from all gradients, has moved from the frozen one (section 4, with the authors'
    defaults). The average starts at the first scale instead of zero.

    Args:
        params: to optimize, or groups of them; each tensor is a layer.
        lr: step size.
        betas: shares that stay of the averages; the first is that of the plan.
        eps: added to the deviation.
        weight_decay: added to a layer's direction before it is scaled.
        scales: least and largest scale of a layer, ‖x‖/‖direction‖.
        factors: least and largest adaptation.
        change: of the adaptation from one step to the next, at most, as a share.
        average: share that stays of the average of scales.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        scales: tuple[float, float] = (0.01, 10.0),
        factors: tuple[float, float] = (0.5, 4.0),
        change: float = 0.1,
        average: float = 0.9,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "scales": scales}
        super().__init__(params, {**defaults, "factors": factors, "change": change, "average": average})

    def _move(
        self, parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any], learns: bool
    ) -> None:
        beta1, beta2 = group["betas"]
        if "fresh" not in state:
            state["fresh"], state["factor"] = torch.zeros_like(parameter), 1.0
        state["fresh"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        deviation = _deviation(state["exp_avg_sq"], state["learnt"], group)
        pure = (_known(state["exp_avg"], state["exp_avg_sq"]) / deviation).div_(1 - beta1 ** state["step"])
        direction = pure.add(parameter, alpha=group["weight_decay"])
        if learns:
            scale = _scale(parameter, direction, group["scales"])
            kept = group["average"] if "scale" in state else 0.0
            state["scale"] = kept * state.get("scale", 0.0) + (1 - kept) * scale
            state["factor"] = 1.0
        else:
            state["factor"] = _factor(deviation, pure, direction, state, group)
            scale = state["scale"] * state["factor"]
        parameter.add_(direction, alpha=-group["lr"] * scale)


def _scale(parameter: Tensor, direction: Tensor, bounds: tuple[float, float]) -> float:
    size, step = float(torch.linalg.vector_norm(parameter)), float(torch.linalg.vector_norm(direction))
    return min(max(size / step, bounds[0]), bounds[1]) if size and step else 1.0


def _factor(
    deviation: Tensor, pure: Tensor, direction: Tensor, state: dict[str, Any], group: dict[str, Any]
) -> float:
    """Returns max(√v/√v_fresh), applied to the share of the direction that is no weight decay, within its bounds."""
    if not deviation.numel():
        return 1.0
    fresh = _deviation(state["fresh"], state["step"], group)
    factor = float((deviation / fresh).max())
    whole = float(torch.linalg.vector_norm(direction))
    share = min(1.0, float(torch.linalg.vector_norm(pure)) / whole) if whole else 1.0
    factor = factor * share + 1.0 - share
    low, high = group["factors"]
    last, change = float(state["factor"]), float(group["change"])
    factor = min(max(factor, low), high)
    return float(min(max(factor, last * (1 - change)), last * (1 + change)))
