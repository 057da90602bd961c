"""Named methods that send a bit per element, with what makes up for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from tightwire.answers import Rate
from tightwire.compression.recipe import Recipe
from tightwire.errors import PlanError


@final
@dataclass(frozen=True)
class EFSignSGD(Recipe):
    """Signs with error feedback."""

    name: ClassVar[str] = "ef-signsgd"
    title: ClassVar[str] = "EF-SignSGD: scaled signs with feedback"
    paper: ClassVar[str] = "Karimireddy et al. 2019, arXiv:1901.09847, Algorithm 1"
    promise: ClassVar[str] = "As good as SGD, and better in test than signs alone (Karimireddy et al. 2019)."
    seen: ClassVar[str] = "The second is seen."

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
    promise: ClassVar[str] = "Up to ten times the speed of speech training at no loss (Seide et al. 2014)."
    seen: ClassVar[str] = "Not seen under plain SGD behind its dense start."

    dense: int = 100

    @property
    def expression(self) -> str:  # noqa: D102
        return f"onebit+ef+dense-first:{self.dense}"


@final
@dataclass(frozen=True)
class OneBitAdamRecipe(Recipe):
    """1-bit Adam: exact until the variance is good, then signs of momenta both ways; for `tightwire.optim.OneBitAdam`.

    Attributes:
        warmup: rounds until the variance is frozen; 15 to 20 % of all in the paper.
        beta: of the momentum, as the optimizer's.
    """

    name: ClassVar[str] = "onebit-adam"
    title: ClassVar[str] = "1-bit Adam: signs of momenta both ways, after a dense start"
    paper: ClassVar[str] = "Tang et al. 2021, arXiv:2102.02888, Algorithm 1"
    promise: ClassVar[str] = "Adam's convergence at a fifth of its bytes (Tang et al. 2021)."
    seen: ClassVar[str] = "Seen."
    proven: ClassVar[Rate | None] = Rate(
        bound="O(1/√(nT)) after the dense start",
        assumes="smooth non-convex loss, bounded variance, bounded errors of the codec; the variance frozen",
        speed_up="linear: n",
        paper="Tang et al. 2021, arXiv:2102.02888, corollary 1",
    )

    warmup: int = 1000
    beta: float = 0.9

    @property
    def expression(self) -> str:  # noqa: D102
        return f"doublesqueeze+ef+ema:{self.beta}+dense-first:{self.warmup}"


@final
@dataclass(frozen=True)
class OneBitLAMB(Recipe):
    """What 1-bit LAMB sends, which is what 1-bit Adam does; for `tightwire.optim.OneBitLamb`, which differs.

    The paper scales layers alike before it compresses them together; here every block has a scale of its own.

    Attributes:
        warmup: rounds until variance and scales are frozen.
        beta: of the momentum, as the optimizer's.
    """

    name: ClassVar[str] = "onebit-lamb"
    title: ClassVar[str] = "1-bit LAMB: signs of momenta both ways, after a dense start"
    paper: ClassVar[str] = "Li et al. 2021, arXiv:2104.06069, Algorithm 1"
    promise: ClassVar[str] = "LAMB's convergence at 1/4.6 of its bytes (Li et al. 2021)."
    seen: ClassVar[str] = "It sends what 1-bit Adam does; the optimizer is tested and not studied."

    warmup: int = 1000
    beta: float = 0.9

    @property
    def expression(self) -> str:  # noqa: D102
        return OneBitAdamRecipe(self.warmup, self.beta).expression


@final
@dataclass(frozen=True)
class ZeroOneAdam(Recipe):
    """0/1 Adam until its local steps: exact in rounds ever further apart, from which the variance learns (T_v).

    For `tightwire.optim.OneBitAdam`. Once the variance has settled, the paper learns no more of it and exchanges what
    momenta moved ever more seldom (T_u), which is a phase of its own:

        bsp/allreduce/zero-one-adam@12500~local:16,doubling=2000,state=momenta/allreduce/doublesqueeze+ef

    The paper's 16 is for runs of 100,000 steps and more, where the 150 exact rounds that fall into the rate's warm-up
    are a hundredth of it. A short run needs as many: let κ be the steps of the warm-up, and the exact rounds end when
    they are as many as 1-bit Adam would have, as `zero-one-adam:40,until=200` for 800 steps. On the study's text that
    costs the bytes of 1-bit Adam with 100 exact rounds, and its loss is 0.4 % above that one's (three seeds, of which
    each explains as much); with 16 and no end it was 0.7 % above, at 8 % fewer bytes. The authors' code compresses
    gradients between exact rounds, not momenta as the paper does: on the same text that lost 6 to 7 % (emulated, two
    seeds).

    Attributes:
        kappa: exact rounds until their distance doubles.
        beta: of the momentum, as the optimizer's.
        until: the last round that may be exact; 0: none is the last. The authors' code ends them with the warm-up, or
            never.
    """

    name: ClassVar[str] = "zero-one-adam"
    title: ClassVar[str] = "0/1 Adam: signs of momenta both ways, between dense rounds ever further apart"
    paper: ClassVar[str] = "Lu et al. 2022, arXiv:2202.06009, Algorithm 1"
    promise: ClassVar[str] = "1-bit Adam's loss at 87 % fewer bytes (Lu et al. 2022)."
    seen: ClassVar[str] = "Seen: within 0.5 % of it."
    proven: ClassVar[Rate | None] = Rate(
        bound="O(1/√(nT))",
        assumes="smooth non-convex loss, bounded variance, bounded gradients",
        speed_up="linear: n",
        paper="Lu et al. 2022, arXiv:2202.06009, theorem 1",
    )

    kappa: int = 16
    beta: float = 0.9
    until: int = 0

    @property
    def expression(self) -> str:  # noqa: D102
        until = f",until={self.until}" if self.until else ""
        return f"doublesqueeze+ef+ema:{self.beta}+dense-growing:{self.kappa}{until}"


@final
@dataclass(frozen=True)
class DRIVE(Recipe):
    """One bit of every element of a randomly rotated vector; unbiased."""

    name: ClassVar[str] = "drive"
    title: ClassVar[str] = "one bit each after a random rotation, unbiased"
    paper: ClassVar[str] = "Vargaftik et al. 2021, DRIVE, arXiv:2105.08339, section 4.2"
    promise: ClassVar[str] = (
        "One bit a coordinate, unbiased, better than other one-bit means (Vargaftik et al. 2021)."
    )
    seen: ClassVar[str] = "Seen."

    @property
    def expression(self) -> str:  # noqa: D102
        return "eden:1"


@final
@dataclass(frozen=True)
class DistributedLion(Recipe):
    """Lion's direction as one bit from every worker; for plain SGD with Lion's rate and weight decay.

    Attributes:
        outcome: `majority`: one bit back; `mean`: the mean of signs, in log₂(2n + 2) bits.
        beta1: share of the momentum in what is sent.
        beta2: share of the momentum that stays.
    """

    name: ClassVar[str] = "distributed-lion"
    title: ClassVar[str] = "Lion by signs: majority vote, or their mean"
    paper: ClassVar[str] = "Liu et al. 2024, Distributed Lion, arXiv:2404.00438, Algorithm 1"
    promise: ClassVar[str] = "As good as Lion on all data, at a bit an element each way (Liu et al. 2024)."
    seen: ClassVar[str] = "Not seen; see lion."

    outcome: str = "majority"
    beta1: float = 0.9
    beta2: float = 0.99

    def __post_init__(self) -> None:
        if self.outcome not in ("majority", "mean"):
            raise PlanError(f"distributed-lion:{self.outcome} is neither majority nor mean.")

    @property
    def expression(self) -> str:  # noqa: D102
        sender = "sign" if self.outcome == "majority" else "meansign"
        return f"{sender}+lion:{self.beta1},beta2={self.beta2}"
