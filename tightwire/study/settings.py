"""With which optimizer each task is trained: the one that suits dense gradients, and the methods' own exceptions.

Learning rates were tuned once, for dense gradients, about by factors of two, with a seed that is not among those of
the studies. SGD with momentum, for which most of the methods were made: on the text AdamW learns faster, but error
feedback loses more to it. A method gets settings of its own where its paper replaces the optimizer, as momentum
correction does, or tunes the rate for it, as that of EF-signSGD does.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch.nn import Parameter
    from torch.optim import Optimizer

WARM_UP = 0.05
# One bit gives an element that hardly ever has a gradient the mean magnitude of its block; divided by the deviation of
# next to nothing that it had, it would leap. The authors' code masks such elements by hand.
ONE_BIT_EPS = 1e-3


@dataclass(frozen=True, kw_only=True)
class Settings:
    """An optimizer and its learning rate, which rises linearly at first and then falls linearly to nothing.

    Attributes:
        optimizer: `sgd`, `adamw`, or `onebit-adam` for plans that compress moving averages.
        lr: the highest learning rate.
        momentum: of `sgd`.
        decays: whether the rate falls; where time to a loss is measured it stays.
    """

    optimizer: Literal["sgd", "adamw", "onebit-adam"]
    lr: float
    momentum: float = 0.0
    decays: bool = True

    def build(self, parameters: Iterable[Parameter]) -> Optimizer:
        """Builds the optimizer."""
        import torch

        from tightwire.optim import OneBitAdam

        if self.optimizer == "onebit-adam":
            return OneBitAdam(parameters, lr=self.lr, eps=ONE_BIT_EPS)
        if self.optimizer == "adamw":
            return torch.optim.AdamW(parameters, lr=self.lr)
        return torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum)

    def lr_at(self, step: int, steps: int) -> float:
        """Returns the learning rate of a step, counted from 0.

        >>> [round(Settings(optimizer="sgd", lr=1.0).lr_at(step, 40), 2) for step in (0, 1, 2, 21, 39)]
        [0.5, 1.0, 1.0, 0.5, 0.03]
        """
        rising = max(1, round(WARM_UP * steps))
        if step < rising:
            return self.lr * (step + 1) / rising
        return self.lr * (1 - (step - rising) / (steps - rising)) if self.decays else self.lr

    def set_lr(self, optimizer: Any, step: int, steps: int) -> None:
        """Gives the optimizer the learning rate of a step."""
        for group in optimizer.param_groups:
            group["lr"] = self.lr_at(step, steps)


DENSE: dict[str, Settings] = {
    "digits": Settings(optimizer="sgd", lr=0.1, momentum=0.9),
    "text": Settings(optimizer="sgd", lr=0.5, momentum=0.9),
    "text-large": Settings(optimizer="adamw", lr=1e-3, decays=False),
}

# (task, plan, settings), shell-style patterns; the first that matches counts.
RECOMMENDED: tuple[tuple[str, str, Settings], ...] = (
    # What is applied is a vote, or a sign: the learning rate is the step itself.
    ("*", "*/sign+*", Settings(optimizer="sgd", lr=0.005)),
    ("*", "*+signed*", Settings(optimizer="sgd", lr=0.005)),
    # Momentum is a stage.
    ("digits", "*+momentum:*", Settings(optimizer="sgd", lr=0.1)),
    ("text", "*+momentum:*", Settings(optimizer="sgd", lr=0.5)),
    # One bit holds back most of a gradient for many steps: momentum on top of that oscillates, and diverges.
    ("digits", "*efsign*", Settings(optimizer="sgd", lr=0.3)),
    ("text", "*efsign*", Settings(optimizer="sgd", lr=0.5)),
    ("digits", "*onebit*", Settings(optimizer="sgd", lr=0.3)),
    ("text", "*onebit*", Settings(optimizer="sgd", lr=0.5)),
    # A step made with an older gradient is momentum by itself (Mitliagkas et al. 2016): 0.9 on top diverges.
    *(
        (task, plan, settings)
        for task, settings in (
            ("digits", Settings(optimizer="sgd", lr=0.2, momentum=0.5)),
            ("text", Settings(optimizer="sgd", lr=1.0)),
        )
        for plan in ("delayed*", "asp*/ps*", "ssp*")
    ),
    # So is a gradient that stands for later ones.
    ("text", "lag*", Settings(optimizer="sgd", lr=0.25, momentum=0.9)),
)


def settings_for(task: str, plan: str) -> Settings:
    """Returns the settings of a plan on a task: the method's own, else the dense ones."""
    for task_pattern, plan_pattern, settings in RECOMMENDED:
        if fnmatch.fnmatchcase(task, task_pattern) and fnmatch.fnmatchcase(plan, plan_pattern):
            return settings
    return DENSE[task]
