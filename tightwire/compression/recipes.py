"""Named methods that are compositions: each stands for a codec and its stages, and is printed as those."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import ClassVar, final

from tightwire.plan import Axis, Member, Plan, Refusal, parse_compression, text_with


@dataclass(frozen=True)
class Recipe(Member, abc.ABC):
    """A name for an expression. A plan holds what the expression says, so the name is lost in its text.

    >>> from tightwire.plan import Plan
    >>> str(Plan.parse("bsp/allreduce/gradient-dropping"))
    'bsp/allreduce/topk:0.01+ef'
    """

    axis: ClassVar[Axis] = "compression"

    @property
    @abc.abstractmethod
    def expression(self) -> str:
        """What the name stands for."""

    def expand(self) -> tuple[Member, ...]:
        """Returns the codec and the stages."""
        return parse_compression(self.expression)

    def refusal(self, plan: Plan) -> Refusal:
        """Refuses to be part of a plan unexpanded; parsing expands."""
        return Refusal(
            reason=f"{self} is a name for {self.expression}: a plan holds the codec and its stages.",
            nearest=(text_with(plan, compression=self.expression),),
        )


@final
@dataclass(frozen=True)
class DGC(Recipe):
    """Deep Gradient Compression, whole; for an optimizer without momentum of its own.

    Attributes:
        ratio: of the elements that are sent in the end.
        momentum: of the velocity that each worker accumulates.
        clip: norm that a tensor's gradients are clipped to.
        warmup: rounds in which sparsity grows; four epochs in the paper.
    """

    name: ClassVar[str] = "dgc"
    title: ClassVar[str] = "deep gradient compression: top-k, feedback, momentum, clipping, warm-up"
    paper: ClassVar[str] = "Lin et al. 2018, Deep Gradient Compression, arXiv:1712.01887"

    ratio: float = 0.001
    momentum: float = 0.9
    clip: float = 1.0
    warmup: int = 1000

    @property
    def expression(self) -> str:
        """Tensors of one dimension travel dense, as in the authors' code."""
        return (
            f"topk:{self.ratio}+ef+momentum:{self.momentum}+clip:{self.clip}+warmup:{self.warmup}+min:dims=2"
        )


@final
@dataclass(frozen=True)
class GradientDropping(Recipe):
    """Top-k with error feedback.

    Attributes:
        ratio: of the elements that are sent; the paper drops 99 %.
    """

    name: ClassVar[str] = "gradient-dropping"
    title: ClassVar[str] = "gradient dropping: top-k with feedback"
    paper: ClassVar[str] = "Aji and Heafield 2017, arXiv:1704.05021"

    ratio: float = 0.01

    @property
    def expression(self) -> str:  # noqa: D102
        return f"topk:{self.ratio}+ef"


@final
@dataclass(frozen=True)
class EFSignSGD(Recipe):
    """Signs with error feedback."""

    name: ClassVar[str] = "ef-signsgd"
    title: ClassVar[str] = "EF-SignSGD: scaled signs with feedback"
    paper: ClassVar[str] = "Karimireddy et al. 2019, arXiv:1901.09847, Algorithm 1"

    @property
    def expression(self) -> str:  # noqa: D102
        return "efsign+ef"


@final
@dataclass(frozen=True)
class OneBitSGD(Recipe):
    """One bit with error feedback, after a dense start.

    Attributes:
        dense: rounds that are sent whole; the paper starts with a tenth of an epoch or more.
    """

    name: ClassVar[str] = "onebit-sgd"
    title: ClassVar[str] = "1-bit SGD: one bit with feedback, after a dense start"
    paper: ClassVar[str] = "Seide et al. 2014, Interspeech"

    dense: int = 100

    @property
    def expression(self) -> str:  # noqa: D102
        return f"onebit+ef+dense-first:{self.dense}"


RECIPES: tuple[type[Recipe], ...] = (DGC, GradientDropping, EFSignSGD, OneBitSGD)
