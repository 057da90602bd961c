"""With which optimizer each task is trained: the one that suits dense gradients, and the methods' own exceptions.

Learning rates were tuned, about by factors of two, with a seed that is not among those of the studies: once for dense
gradients, and again for methods that lose much with the dense settings. SGD with momentum, for which most of the
methods were made: on the text AdamW learns faster, but error feedback loses more to it. A method gets settings of its
own where its paper replaces the optimizer, as momentum correction does, or tunes the rate for it, as that of EF-signSGD
does, or where its theorem is about another optimizer.

EF21 keeps the dense settings and loses about 2 %: none were found that suit it better. It follows the gradient by the
share that it sends, so that noise of a hundred batches ago is still in it; what helps it in the literature, a moving
average before the difference (Fatkhullin et al. 2023, arXiv:2305.15155), is another method.
"""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from tightwire.averaging import DoubleSqueeze
from tightwire.plan import Plan

if TYPE_CHECKING:
    from torch.nn import Parameter
    from torch.optim import Optimizer

WARM_UP = 0.05
FOUND_RATES = pathlib.Path(__file__).with_name("rates.json")
# One bit gives an element that hardly ever has a gradient the mean magnitude of its block; divided by the deviation of
# next to nothing that it had, it would leap. The authors' code masks such elements by hand.
ONE_BIT_EPS = 1e-3
# Muon's updates are of one size, a hundredth of a weight or so; AdamW's rate beside it is the usual share of it.
MATRIX_DIMS, BESIDE_MUON = 2, 0.05


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """An optimizer and its learning rate, which rises linearly at first and then falls linearly to nothing.

    Attributes:
        optimizer: `sgd`, `adamw`, `onebit-adam` for plans that compress moving averages, or `muon` for matrices with
            `adamw` beside it for the rest.
        lr: the highest learning rate.
        momentum: of `sgd`.
        decays: whether the rate falls; where time to a loss is measured it stays.
    """

    optimizer: Literal["sgd", "adamw", "onebit-adam", "muon"]
    lr: float
    momentum: float = 0.0
    decays: bool = True

    def __str__(self) -> str:
        momentum = f", momentum {self.momentum:g}" if self.momentum else ""
        return f"{self.optimizer}, rate {self.lr:g}{momentum}{'' if self.decays else ', constant'}"

    def build(self, parameters: Iterable[Parameter]) -> list[Optimizer]:
        """Builds the optimizer, or those that share the parameters."""
        import torch

        from tightwire.optim import OneBitAdam

        if self.optimizer == "onebit-adam":
            return [OneBitAdam(parameters, lr=self.lr, eps=ONE_BIT_EPS)]
        if self.optimizer == "adamw":
            return [torch.optim.AdamW(parameters, lr=self.lr)]
        if self.optimizer == "muon":
            matrices: list[Parameter] = []
            others: list[Parameter] = []
            for parameter in parameters:
                (matrices if parameter.ndim == MATRIX_DIMS else others).append(parameter)
            beside = torch.optim.AdamW(others, lr=self.lr * BESIDE_MUON)
            return [torch.optim.Muon(matrices, lr=self.lr, weight_decay=0.0), beside]
        return [torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum)]

    def lr_at(self, step: int, steps: int) -> float:
        """Returns the learning rate of a step, counted from 0.

        >>> [round(TrainingSettings(optimizer="sgd", lr=1.0).lr_at(step, 40), 2) for step in (0, 1, 2, 21, 39)]
        [0.5, 1.0, 1.0, 0.5, 0.03]
        """
        rising = max(1, round(WARM_UP * steps))
        if step < rising:
            return self.lr * (step + 1) / rising
        return self.lr * (1 - (step - rising) / (steps - rising)) if self.decays else self.lr

    def set_lr(self, optimizers: Sequence[Optimizer], step: int, steps: int) -> None:
        """Gives the optimizers the learning rate of a step."""
        for optimizer, share in zip(optimizers, (1.0, BESIDE_MUON), strict=False):
            for group in optimizer.param_groups:
                group["lr"] = share * self.lr_at(step, steps)


DENSE: dict[str, TrainingSettings] = {
    "digits": TrainingSettings(optimizer="sgd", lr=0.1, momentum=0.9),
    "images": TrainingSettings(optimizer="sgd", lr=0.05, momentum=0.9),
    "text": TrainingSettings(optimizer="sgd", lr=0.5, momentum=0.9),
    "text-large": TrainingSettings(optimizer="adamw", lr=1e-3, decays=False),
}

# Codecs that send one part in tens of a gradient, or a size that is not its own.
DELAYING = ("randomk", "sampled", "sketch", "sbc", "stc", "strom", "dct", "blocktopk", "layertopk")
# A mean that comes so many steps late makes any policy one of those that delay.
LONG_LATE = 16


@dataclass(frozen=True)
class MethodSettings:
    """A method's own settings.

    Attributes:
        methods: names of members, and `late` (see `LONG_LATE`); all of them in a plan make it one of this kind.
        by_task: its settings; where a task is missing, the next entry, or the dense settings, count.
    """

    methods: frozenset[str]
    by_task: Mapping[str, TrainingSettings]


def _of(*methods: str, **by_task: TrainingSettings) -> MethodSettings:
    """Says with what methods train; images with what digits do, at half the rate, as dense gradients."""
    if digits := by_task.get("digits"):
        by_task["images"] = replace(digits, lr=digits.lr / 2)
    return MethodSettings(frozenset(methods), by_task)


def _sgd(lr: float, momentum: float = 0.0) -> TrainingSettings:
    return TrainingSettings(optimizer="sgd", lr=lr, momentum=momentum)


def _muon(lr: float) -> TrainingSettings:
    return TrainingSettings(optimizer="muon", lr=lr)


def _onebit_adam(lr: float) -> TrainingSettings:
    return TrainingSettings(optimizer="onebit-adam", lr=lr)


# The first that a plan is of counts.
OWN_SETTINGS = (
    # What is applied is a vote, or a sign: the learning rate is the step itself.
    _of("sign", digits=_sgd(0.005), text=_sgd(0.005)),
    _of("meansign", digits=_sgd(0.005), text=_sgd(0.005)),
    _of("signed", digits=_sgd(0.005), text=_sgd(0.005)),
    # Muon, with the rate of its authors.
    _of("muloco", digits=_muon(0.02), text=_muon(0.02)),
    # Orthonormal updates: all singular values are one, and the rate is their length. Momentum is the method's own.
    _of("dion", digits=_sgd(0.02), text=_sgd(0.02)),
    # Lion's blend as it is, followed by EF21.
    _of("lion", "ef21", digits=_sgd(0.05), text=_sgd(0.05)),
    # 1-bit Adam and its kin replace the optimizer, and average with its momentum.
    _of("ema", digits=_onebit_adam(0.003), text=_onebit_adam(0.03)),
    # Momentum is a stage. DGC also clips every worker's gradient of every tensor, which shortens steps: the rate makes
    # up for it.
    _of("momentum", "clip", digits=_sgd(0.4), text=_sgd(2.0)),
    _of("momentum", "sketch", text=_sgd(0.2)),
    _of("momentum", digits=_sgd(0.1), text=_sgd(0.5)),
    # An element that is drawn once in twenty rounds takes twenty gradients' step at once.
    _of("randomk", text=_sgd(0.25)),
    # Of a difference to what it remembers DIANA sends a quantised version: where gradients change, as in the first
    # steps, its noise is that of both, and the theory's rate is the smaller for it (theorem 1).
    _of("diana", digits=_sgd(0.05, 0.9), text=_sgd(0.1, 0.9)),
    # These hold most of a gradient back for tens of steps: feedback over so long a delay is a momentum of its own, and
    # the optimizer's on top of it oscillates, or diverges. The theorems of feedback are about plain SGD. On the text
    # plain SGD itself is slow: what these lose there to dense with momentum, top-k loses without momentum, too.
    # It holds back for longer the noisier a gradient is: at 2.0 one seed of the text trains, and another diverges.
    _of("variance", digits=_sgd(0.5), text=_sgd(1.0)),
    *(
        _of(*methods, digits=_sgd(0.5), text=_sgd(2.0))
        for methods in (
            ("efsign",),
            ("onebit",),
            *((name, "ef") for name in DELAYING),
            ("adacomp",),
        )
    ),
    # A step made with an older gradient is momentum by itself (Mitliagkas et al. 2016): 0.9 on top diverges.
    *(_of(*methods, digits=_sgd(0.2, 0.5), text=_sgd(1.0)) for methods in (("asp", "ps"), ("ssp",))),
    _of("delayed", digits=_sgd(0.2, 0.5), text=_sgd(0.5)),
    # Rounds whose mean comes tens of steps late, for the same reason: 0.5 makes them diverge.
    _of("late", text=_sgd(0.2, 0.9)),
    # A slow momentum of 0.7 makes rounds three times as long.
    _of("slowmo", text=_sgd(0.2, 0.9)),
    # So is a gradient that stands for later ones.
    _of("lag", text=_sgd(0.25, 0.9)),
)


def settings_for(task: str, plan: str, scene: str = "") -> TrainingSettings:
    """Returns the settings of a plan on a task: the method's own, else the dense ones.

    Args:
        task: its name.
        plan: its text, or the name of a way of stock DDP, which trains as dense gradients do.
        scene: that has rates of its own; one that was not found there is as everywhere.
    """
    found, known = _unscaled(task, plan), found_rates()
    factor = known.get(task, {}).get(plan, 1.0)
    if scene:
        factor = known.get(rate_place(task, scene), {}).get(plan, factor)
    return found if factor == 1.0 else replace(found, lr=found.lr * factor)


def rate_place(task: str, scene: str) -> str:
    """Returns where factors of rates are kept: of a task, or of a task in a scene with rates of its own."""
    return f"{task}, {scene}" if scene else task


@functools.cache
def found_rates() -> dict[str, dict[str, float]]:
    """Returns, by place and plan, by what rates are multiplied: as sought on a seed of its own; see `rates`."""
    if not FOUND_RATES.exists():
        return {}
    found: dict[str, dict[str, float]] = json.loads(FOUND_RATES.read_text(encoding="utf-8"))
    return found


def _unscaled(task: str, plan: str) -> TrainingSettings:
    names: Set[str] = set() if plan.startswith("ddp") else _answers(Plan.parse(plan))
    for own in OWN_SETTINGS:
        if own.methods <= names and task in own.by_task:
            return own.by_task[task]
    return DENSE[task]


def _answers(plan: Plan) -> Set[str]:
    """Returns the names of the members that bear on the optimizer, and of the codec inside one that carries another's.

    Where rounds are agreed on, every worker steps with its own dense gradients: what holds a message back acts
    between the rounds, and rates that were found for plain SGD behind it make the steps in between diverge.
    """
    if plan.sync.engine == "rounds":
        late = {"late"} if plan.sync.steps_late >= LONG_LATE else set[str]()
        return late | {plan.sync.name, plan.architecture.name, plan.schedule.name}
    names = {member.name for member in plan.members()}
    if isinstance(plan.sender, DoubleSqueeze):
        names.add(plan.sender.sender.name)
    return names
