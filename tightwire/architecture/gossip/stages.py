"""Stages that compress gossip: what neighbours keep of each other, so that losses do not add up.

Written behind a codec, `topk:0.01+choco:gamma=0.1`, or around it, `choco:topk=0.01`. The steps themselves are in
`mixers`; here stands what a plan needs to know. x is a worker's parameters, x½ those after its own
optimizer's step, W the mixing matrix, C the codec.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass, replace
from typing import ClassVar, final

from tightwire.answers import Answers, CompressionAnswer, Rate, Refusal, text_with
from tightwire.catalogue import parse_compression
from tightwire.compression.casts import Identity
from tightwire.compression.codec import Codec
from tightwire.compression.ef import ErrorFeedback
from tightwire.compression.randomk import RandomK
from tightwire.compression.stage import Stage, refuse
from tightwire.errors import PlanError


@dataclass(frozen=True)
class GossipStage(Stage, abc.ABC):
    """Says how compressed messages enter the parameters.

    Class attributes:
        needs_static: whether neighbours must be the same in every round, because each keeps a replica of the other.

    Attributes:
        codec: in the short form, the codec it goes around, as in `choco:topk=0.01`; empty behind a codec.
    """

    place: ClassVar[int] = 0
    serves_dense: ClassVar[bool] = True
    shorthand: ClassVar[str] = "codec"
    needs_static: ClassVar[bool] = True

    codec: str = ""

    def expand(self) -> tuple[CompressionAnswer, ...]:
        """Returns codec and stage of the short form."""
        if not self.codec:
            return (self,)
        codec, *others = parse_compression(self.codec)
        if not isinstance(codec, Codec) or others:
            raise PlanError(
                f"{self.name} goes around one codec, and {self.codec} is none, as in {self.name}:topk=0.01."
            )
        return (codec, replace(self, codec=""))

    def refusal(self, plan: Answers) -> Refusal | None:
        """Refuses averaging by anything but gossip: everybody's mean needs no replicas."""
        if refusal := super().refusal(plan):
            return refusal
        if plan.architecture.name == "gossip":
            return None
        others = [stage for stage in plan.compression[1:] if stage != self]
        averaging = refuse(plan, "", [ErrorFeedback(), *others]) if not _is_lossless(plan) else None
        return Refusal(
            reason=f"{self} compresses gossip, and {plan.architecture} is none.",
            nearest=(
                text_with(plan, architecture="gossip:exponential"),
                *(averaging.nearest if averaging else ()),
            ),
        )


def _is_lossless(plan: Answers) -> bool:
    return plan.compression[0].lossless


@final
@dataclass(frozen=True)
class Choco(GossipStage):
    """Sends compressed differences to what neighbours know of this worker.

    q = C(x½ − x̂), x̂ ← x̂ + q, x ← x½ + γ Σ Wᵢⱼ(x̂ⱼ − x̂ᵢ).

    Algorithm 2 of arXiv:1902.00340. Replicas begin at the common start instead of 0, which every worker has; a
    worker keeps x̂ᵢ and Σ Wᵢⱼx̂ⱼ, not one replica per neighbour (appendix E of arXiv:1907.09356).

    Attributes:
        codec: see `GossipStage`.
        gamma: γ in (0, 1]; 0 stands for δ/(2 − δ), where 1 − δ is the share of a Gaussian vector's energy that the
            codec loses: 1 for none, 0.46 for signs, 0.04 for the largest 1 %, near what the paper tuned.
    """

    name: ClassVar[str] = "choco"
    title: ClassVar[str] = "CHOCO: gossip of compressed differences, for any codec"
    paper: ClassVar[str] = (
        "Koloskova, Stich and Jaggi 2019, arXiv:1902.00340; Koloskova et al. 2019, arXiv:1907.09356"
    )
    promise: ClassVar[str] = (
        "As good as exact gossip at 4 bits, or with 1 % of the elements (Koloskova et al. 2019)."
    )
    seen: ClassVar[str] = "results/architecture.md tells both."
    proven: ClassVar[Rate | None] = Rate(
        bound="O(1/√(nT)) and terms that vanish faster, in (ρ²δT)^(−2/3): ρ the graph's gap, δ the codec's contraction",
        assumes="smooth non-convex loss, bounded variance, bounded gradients",
        speed_up="linear: n, once T is large",
        paper="Koloskova et al. 2020, arXiv:1907.09356, theorem 4.1",
    )
    example: ClassVar[str] = "choco:topk=0.01"

    gamma: float = 0.0

    def __post_init__(self) -> None:
        _require_share(self, "gamma", self.gamma)


@final
@dataclass(frozen=True)
class DeepSqueeze(GossipStage):
    """Gossips compressed parameters, and adds what was lost to the next ones.

    v = x½ + e, e ← v − C(v), x ← x½ + η Σ (W − I)ᵢⱼ C(vⱼ).

    Keeps no replicas, so neighbours may change from round to round.

    Attributes:
        codec: see `GossipStage`.
        eta: η in (0, 1]; 0 stands for the default of `choco`'s gamma.
    """

    name: ClassVar[str] = "deepsqueeze"
    title: ClassVar[str] = "DeepSqueeze: error-compensated gossip"
    paper: ClassVar[str] = "Tang et al. 2019, arXiv:1907.07346, Algorithm 1"
    promise: ClassVar[str] = (
        "Bears any compression, by feedback and small averaging rates (Tang et al. 2019)."
    )
    seen: ClassVar[str] = "results/architecture.md tells."
    proven: ClassVar[Rate | None] = Rate(
        bound="O(1/√(nT) + 1/T^(2/3) + 1/T)",
        assumes="smooth non-convex loss, bounded variance, unlike data",
        speed_up="linear: n",
        paper="Tang et al. 2019, arXiv:1907.07346, corollary 2",
    )
    example: ClassVar[str] = "deepsqueeze:topk=0.25"
    needs_static: ClassVar[bool] = False

    eta: float = 0.0

    def __post_init__(self) -> None:
        _require_share(self, "eta", self.eta)


@final
@dataclass(frozen=True)
class DCD(GossipStage):
    """Compresses the change of the parameters themselves: x ← x + C(Σ Wᵢⱼxⱼ + x½ − 2x), so that replicas are exact.

    Needs a codec that loses little (theorem 1): below 4 bits or at 1 % it diverges, as in the paper.
    """

    name: ClassVar[str] = "dcd"
    title: ClassVar[str] = "DCD-PSGD: gossip that compresses differences"
    paper: ClassVar[str] = "Tang et al. 2018, arXiv:1803.06443, Algorithm 1"
    promise: ClassVar[str] = (
        "The rate of D-PSGD as long as what is sent is precise enough (Tang et al. 2018)."
    )
    seen: ClassVar[str] = "results/architecture.md tells where it fails."
    proven: ClassVar[Rate | None] = Rate(
        bound="O(1/√(nT)) while the codec's error is below the graph's bound",
        assumes="smooth non-convex loss, bounded variance, unlike data",
        speed_up="linear: n",
        paper="Tang et al. 2018, arXiv:1803.06443, theorem 1",
    )
    example: ClassVar[str] = "dcd:int8"


@final
@dataclass(frozen=True)
class ECD(GossipStage):
    """Compresses an extrapolation, so that errors average out over rounds.

    x ← Σ Wᵢⱼx̃ⱼ + x½ − x; z = (1 − t/2)x_t + (t/2)x_{t+1}; x̃ ← (1 − 2/t)x̃ + (2/t)C(z).

    t is 1 in the first round, as in the code of the CHOCO paper (github.com/epfml/ChocoSGD).

    z grows with t, and so does a codec's error on it: only codecs with a bounded absolute error serve, and those
    of few bits fail first, as in the CHOCO paper's comparison.
    """

    name: ClassVar[str] = "ecd"
    title: ClassVar[str] = "ECD-PSGD: gossip that compresses extrapolations"
    paper: ClassVar[str] = "Tang et al. 2018, arXiv:1803.06443, Algorithm 2"
    promise: ClassVar[str] = "The rate of D-PSGD with unbiased codecs (Tang et al. 2018)."
    seen: ClassVar[str] = "results/architecture.md tells that it fails before DCD."
    proven: ClassVar[Rate | None] = Rate(
        bound="O(1/√(nT)), up to logarithms",
        assumes="smooth non-convex loss, bounded variance, unlike data; errors of the codec of bounded size",
        speed_up="linear: n",
        paper="Tang et al. 2018, arXiv:1803.06443, theorem 3",
    )
    example: ClassVar[str] = "ecd:fp16"


@final
@dataclass(frozen=True)
class SAPS(GossipStage):
    """Mixes the same random elements on all workers, and leaves the others: x ← x½ + Σ Wᵢⱼ(m ∘ xⱼ½) − m ∘ xᵢ½.

    Nothing is lost, so nothing is remembered. Mixing is that of the authors' code (github.com/wizard1203/GossipFL). The
    paper's peer, one per round and along fast links, is the graph `bandwidth`: `bsp/gossip:bandwidth/saps:0.01`.

    Attributes:
        codec: `randomk:RATIO`, or the ratio alone.
    """

    name: ClassVar[str] = "saps"
    title: ClassVar[str] = "SAPS-PSGD: the same random elements mixed everywhere"
    paper: ClassVar[str] = "Tang, Shi, Chu 2020, arXiv:2002.09692"
    promise: ClassVar[str] = (
        "1/c of the elements over the fastest links, with the loss of D-PSGD (Tang et al. 2020)."
    )
    seen: ClassVar[str] = "results/architecture.md tells."
    example: ClassVar[str] = "saps:0.01"
    needs_static: ClassVar[bool] = False

    def expand(self) -> tuple[CompressionAnswer, ...]:
        """Reads a ratio as that of `randomk`."""
        if self.codec.partition(":")[0].replace(".", "").replace("e-", "").isdigit():
            return replace(self, codec=f"randomk:{self.codec}").expand()
        return super().expand()

    def refusal(self, plan: Answers) -> Refusal | None:
        """Refuses a codec that chooses other elements on other workers."""
        sender = plan.compression[0]
        if (refusal := super().refusal(plan)) or isinstance(sender, RandomK | Identity):
            return refusal
        others = [stage for stage in plan.compression[1:] if stage != self]
        return Refusal(
            reason=f"saps mixes the same elements on all workers, and {sender} chooses for each.",
            nearest=(
                text_with(plan, compression="+".join(map(str, (RandomK(0.01), self, *others)))),
                text_with(plan, compression="+".join(map(str, (sender, Choco(), *others)))),
            ),
        )


def _require_share(stage: GossipStage, field: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise PlanError(
            f"{stage.name} cannot step by {field}={value}: give one in (0, 1], as in {stage.name}:{field}=0.3, or none."
        )


MEMBERS: tuple[type[GossipStage], ...] = (Choco, DCD, ECD, DeepSqueeze, SAPS)
