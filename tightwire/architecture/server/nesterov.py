"""The outer step of asynchronous DiLoCo: momentum once every so many changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class DelayedNesterov(Optimizer):
    """Steps at once with each pseudo-gradient, and with Nesterov momentum in every N-th step (Liu et al., algorithm 3).

        Δ ← Δ + g;  in every N-th step m ← β m + Δ/N, x ← x − ε((1 − cN + c) β m + g/N), Δ ← 0;
        in the others x ← x − ε(c β m + g/N)

    A parameter without a gradient is left as it is, and counts no step.
    """

    def __init__(
        self, params: Iterable[Tensor], *, lr: float, momentum: float, delay: int, activation: float = 0.0
    ) -> None:
        """Takes ε, β, N and c."""
        super().__init__(params, {"lr": lr, "momentum": momentum, "delay": delay, "activation": activation})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Makes one step from `p.grad`."""
        assert closure is None, "servers have no loss"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, group)

    def _step(self, x: Tensor, group: dict[str, Any]) -> None:
        lr, beta, n, c = group["lr"], group["momentum"], int(group["delay"]), group["activation"]
        state, g = self.state[x], x.grad
        assert g is not None
        if not state:
            state |= {"momentum": torch.zeros_like(x), "gathered": torch.zeros_like(x), "count": 0}
        m, gathered = state["momentum"], state["gathered"]
        state["count"] += 1
        gathered.add_(g)
        share = c
        if state["count"] % n == 0:
            m.mul_(beta).add_(gathered, alpha=1 / n)
            gathered.zero_()
            share = 1 - c * n + c
        x.add_(g, alpha=-lr / n)
        if share:
            x.add_(m, alpha=-lr * share * beta)
