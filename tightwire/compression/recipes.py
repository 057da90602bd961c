"""Named methods that are compositions of a codec, or an averaging method, and stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from tightwire.answers import Rate
from tightwire.compression.recipe import Recipe
from tightwire.errors import PlanError


@final
@dataclass(frozen=True)
class DGC(Recipe):
    """Deep Gradient Compression, whole; for an optimizer without momentum of its own.

    The paper clips local gradients of recurrent networks, whose gradients explode; elsewhere give `clip=0`.

    Attributes:
        ratio: of the elements that are sent in the end.
        momentum: of the velocity that each worker accumulates.
        clip: norm that a tensor's gradients are clipped to; 0 for no clipping.
        warmup: rounds in which sparsity grows; four epochs in the paper.
    """

    name: ClassVar[str] = "dgc"
    title: ClassVar[str] = "deep gradient compression: top-k, feedback, momentum, clipping, warm-up"
    paper: ClassVar[str] = "Lin et al. 2018, Deep Gradient Compression, arXiv:1712.01887"
    promise: ClassVar[str] = "270 to 600 times fewer bytes at no loss (Lin et al. 2018)."
    seen: ClassVar[str] = "Seen at 1 %."

    ratio: float = 0.001
    momentum: float = 0.9
    clip: float = 1.0
    warmup: int = 1000

    @property
    def expression(self) -> str:
        """Tensors of one dimension travel dense, as in the authors' code."""
        clip = f"+clip:{self.clip}" if self.clip else ""
        return f"topk:{self.ratio}+ef+momentum:{self.momentum}{clip}+warmup:{self.warmup}+min:dims=2"


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
    promise: ClassVar[str] = "99 % dropped at no loss of BLEU (Aji and Heafield 2017)."
    seen: ClassVar[str] = "Not seen within 1 %, in a training of 800 steps; see topk."

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
class DeMo(Recipe):
    """Decoupled momentum: each worker's own, of which the strongest waves are sent and taken; for plain SGD.

    Algorithm 1: m ← βm + g, q the strongest waves of m, m ← m − q, and a step by the sign of the mean of q. Error
    feedback that decays by β is that momentum. The rate of the optimizer is a signed step's: about a tenth
    of Adam's or less.

    The authors' code (github.com/bloc97/DeMo) differs in three things. It adds g times the learning rate, so that a
    gradient counts in m by the rate of its time. A wave's mean is over those workers that sent it; here, as the paper
    writes, over all. And of a matrix it transforms squares of 64 × 64 and sends 32 of 4096 waves, of a vector 32 of 64:
    the default here, 2 of every 64 elements, is between the two.

    Attributes:
        kept: waves of each chunk that are sent.
        chunk: elements that are transformed together.
        beta: of the momentum.
    """

    name: ClassVar[str] = "demo"
    title: ClassVar[str] = "decoupled momentum: strongest waves with decaying feedback, then signs"
    paper: ClassVar[str] = "Peng, Quesnelle and Kingma 2024, DeMo, arXiv:2411.19870, Algorithm 1"
    promise: ClassVar[str] = "AdamW's loss at a small share of the bytes (Peng et al. 2024)."
    seen: ClassVar[str] = "Not seen against SGD with momentum: more steps in a training of 800."

    kept: int = 2
    chunk: int = 64
    beta: float = 0.999

    @property
    def expression(self) -> str:  # noqa: D102
        return f"dct:{self.kept},chunk={self.chunk}+ef:{self.beta}+signed"


@final
@dataclass(frozen=True)
class SketchedSGD(Recipe):
    """Heavy hitters found by a summed sketch, their exact mean, and error feedback.

    Attributes:
        ratio: of the elements that are sent.
    """

    name: ClassVar[str] = "sketched-sgd"
    title: ClassVar[str] = "heavy hitters of a summed sketch, with feedback"
    paper: ClassVar[str] = "Ivkin et al. 2019, Sketched-SGD, arXiv:1903.04488, Algorithm 2"
    promise: ClassVar[str] = (
        "40 times fewer bytes at no loss, whatever the number of workers (Ivkin et al. 2019)."
    )
    seen: ClassVar[str] = "Not seen: the model is small for its sketch."
    proven: ClassVar[Rate | None] = Rate(
        bound="O(1/T) of the distance to the optimum's value",
        assumes="smooth strongly convex loss, bounded gradients",
        speed_up="not stated",
        paper="Ivkin et al. 2019, arXiv:1903.04488, theorem 1",
    )

    ratio: float = 0.01

    @property
    def expression(self) -> str:  # noqa: D102
        return f"sketch:{self.ratio}+ef"


@final
@dataclass(frozen=True)
class FetchSGD(Recipe):
    """Heavy hitters as the summed sketch estimates them, with momentum and error feedback.

    The paper keeps momentum and error as sketches at a server. A sketch is linear: kept by the workers unsketched they
    sum to the same. The authors' code (github.com/kiddyboots216/CommEfficient) empties the places of momentum and error
    that an element was read from; see `sketch`. Rows are five, as in the paper, of three places for every element that
    is recovered; there it is about ten, for models where a thousandth is plenty.

    Attributes:
        ratio: of the elements that are recovered.
        momentum: of the velocity that each worker accumulates.
    """

    name: ClassVar[str] = "fetchsgd"
    title: ClassVar[str] = "heavy hitters as a summed sketch estimates them, with momentum and feedback"
    paper: ClassVar[str] = "Rothchild et al. 2020, FetchSGD, arXiv:2007.07682, Algorithm 1"
    promise: ClassVar[str] = (
        "Better than FedAvg at the same bytes, on unlike data of many clients (Rothchild et al. 2020)."
    )
    seen: ClassVar[str] = "Not seen with four workers on like data, which is not its case."
    proven: ClassVar[Rate | None] = Rate(
        bound="O(1/√T) where gradients have heavy hitters, else O(1/T^(1/3))",
        assumes="smooth non-convex loss, bounded gradients",
        speed_up="not stated",
        paper="Rothchild et al. 2020, arXiv:2007.07682, theorems 1 and 2",
    )

    ratio: float = 0.01
    momentum: float = 0.9

    @property
    def expression(self) -> str:  # noqa: D102
        width = min(3 * self.ratio, 1.0)
        return f"sketch:{self.ratio},width={width:g},rows=5,exact=false+ef+momentum:{self.momentum}"


@final
@dataclass(frozen=True)
class LAGS(Recipe):
    """Top-k of each layer by itself, with error feedback; over `mgwfbp` buckets it is OMGS-SGD.

    Attributes:
        ratio: of the elements of each layer that are sent.
    """

    name: ClassVar[str] = "lags"
    title: ClassVar[str] = "layer-wise top-k with feedback"
    paper: ClassVar[str] = "Shi et al. 2020, LAGS-SGD, arXiv:1911.08727; OMGS-SGD, INFOCOM 2020"
    promise: ClassVar[str] = "Layer by layer, hidden behind backward, with top-k's loss (Shi et al. 2020)."
    seen: ClassVar[str] = "Not quite: small layers keep a hundredth of their own."
    proven: ClassVar[Rate | None] = Rate(
        bound="O(1/√T)",
        assumes="smooth non-convex loss, bounded variance, bounded gradients; top-k no worse than random-k",
        speed_up="not stated",
        paper="Shi et al. 2020, arXiv:1911.08727, theorem 1",
    )

    ratio: float = 0.001

    @property
    def expression(self) -> str:  # noqa: D102
        return f"layertopk:{self.ratio}+ef"


@final
@dataclass(frozen=True)
class SparseTernary(Recipe):
    """Sparse ternary compression both ways, with error feedback at both ends.

    Every worker is the server of a part of the bucket; see `doublesqueeze`.

    Attributes:
        ratio: of the elements that are sent each way; the paper takes 1/400.
    """

    name: ClassVar[str] = "sparse-ternary"
    title: ClassVar[str] = "STC both ways: largest magnitudes as signs, to the owners and back"
    paper: ClassVar[str] = "Sattler et al. 2019, arXiv:1903.02891, Algorithm 2"
    promise: ClassVar[str] = (
        "Upload and download compressed, better than FedAvg on unlike data (Sattler et al. 2019)."
    )
    seen: ClassVar[str] = "On like data it needs more steps here, as top-k does."

    ratio: float = 0.01

    @property
    def expression(self) -> str:  # noqa: D102
        return f"doublesqueeze:stc:{self.ratio}+ef"


@final
@dataclass(frozen=True)
class SparseLoCo(Recipe):
    """What SparseLoCo sends of a pseudo-gradient: the largest of every chunk in two bits, with decaying feedback.

    For local rounds whose outer step takes the mean: e ← 0.95e + Δ, the largest 64 of every 4096 elements of e are
    sent, e keeps the rest, and the leftover is the momentum (Algorithm 1):

        local:30/allreduce/sparseloco

    The paper also tries outer rates below 1, `diloco:30,outer_lr=0.8,outer_momentum=0`. Its inner optimizer is AdamW.
    The authors' code (github.com/tplr-ai/templar) multiplies Δ by the outer rate before feedback, which is the same,
    has chunks of 64 × 64 of a matrix, and four levels for all values of a tensor: the means of four bins, each of 1.5
    standard deviations. Here a chunk has its own: the least and the largest magnitude, with their signs.

    An element waits 1/ratio rounds in the mean, so a run of fewer rounds than that sends some of them never: take a
    larger share then, as in `sparseloco:0.125`, and smaller chunks, whose indices are shorter, as in
    `sparseloco:0.5,chunk=256`. In a run of few rounds the leftover is no momentum yet either: on the study's text,
    with 25 rounds of 32 steps, no share of up to a half (1/100 of DDP's bytes) is better than DiLoCo with an outer
    momentum and int4+ef (1/248) beyond the noise, which with AdamW inside both they equal at an outer rate of 1.5
    (2.182 and 2.185), and with SGD inside lose by 4 %. With rounds of 8 steps, `local:8/allreduce/` and a share of
    0.1 in chunks of 256, they equal DiLoCo's best (2.163 and 2.160) at 1/112, and at an outer rate of 1.25 are 2 %
    better (2.094 and 2.138, three seeds); at as many bytes, with rounds of 14 steps, DiLoCo with int4+ef is better by
    1 % (one seed).

    Attributes:
        ratio: of the elements of a chunk that are sent.
        chunk: elements that are ranked together.
        decay: what stays of the leftover.
        values: in how many bits; see `blocktopk`.
    """

    name: ClassVar[str] = "sparseloco"
    title: ClassVar[str] = "largest of every chunk in two bits with decaying feedback, for local rounds"
    paper: ClassVar[str] = "Sarfi et al. 2025, SparseLoCo, arXiv:2508.15706, Algorithm 1"
    promise: ClassVar[str] = (
        "Better than DiLoCo with int4 and feedback, at 1 to 3 % of the elements in 2 bits (Sarfi et al. "
        "2025)."
    )
    seen: ClassVar[str] = (
        "Seen with rounds of 8 steps, at a hundredth of DDP's bytes; with rounds of 32 there are too few of"
        " them here for so little."
    )

    ratio: float = 0.015625
    chunk: int = 4096
    decay: float = 0.95
    values: str = "int2"

    @property
    def expression(self) -> str:  # noqa: D102
        return f"blocktopk:{self.ratio},block={self.chunk},values={self.values}+ef:{self.decay}"


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


@final
@dataclass(frozen=True)
class Cocktail(Recipe):
    """A tenth of the elements at random, the largest fifth of these, in four bits, with error feedback.

    The paper applies the mean one step late, behind the next step's computation, and reports about a hundredth of the
    bytes and training over 500 Mb/s at nearly the speed of data-centre networks. As a whole it is nearly

        delayed:1/allreduce/cocktail

    The authors' code (github.com/DS3Lab/CocktailSGD), whose ratios these are, compresses how far a worker's parameters
    went from those that all have, so that what was not sent stays in them, and every worker differs. Each is the
    server of a part, which compresses the mean again with feedback of its own, and all draw the same elements. Here
    gradients are compressed, once, replicas stay equal, and each worker draws its own elements.

    Attributes:
        ratio: of the elements that are drawn.
        top: of the drawn ones that are sent.
        values: in how many bits.
    """

    name: ClassVar[str] = "cocktail"
    title: ClassVar[str] = "random, then largest, then few bits, with feedback"
    paper: ClassVar[str] = "Wang et al. 2023, CocktailSGD, ICML"
    promise: ClassVar[str] = "117 times fewer bytes in fine-tuning at next to no loss (Wang et al. 2023)."
    seen: ClassVar[str] = "From scratch more steps are needed here."

    ratio: float = 0.1
    top: float = 0.2
    values: str = "int4"

    @property
    def expression(self) -> str:  # noqa: D102
        return f"sampled:{self.ratio},top={self.top},values={self.values}+ef"


@final
@dataclass(frozen=True)
class EF21Muon(Recipe):
    """Every worker's moving average of gradients, by top-k of its change (EF21); for `torch.optim.Muon`.

    Muon without momentum of its own steps with the mean of what all follow: Muon(matrices, momentum=0, nesterov=False),
    which is the spectral-norm step of the paper, and another optimizer for the rest. The paper also compresses what a
    server sends back; here every worker holds the mean and makes the same step. Averages and what is known of them
    begin at zero, where the paper begins with a first gradient. It reports up to 7 times fewer bytes from the workers
    without loss of quality. Algorithm 3 is from a summary of the paper.

    Attributes:
        ratio: of the elements that are sent.
        beta: share of the moving average that stays.
    """

    name: ClassVar[str] = "ef21-muon"
    title: ClassVar[str] = "EF21 around top-k of moving averages, for Muon"
    paper: ClassVar[str] = "Gruntkowska et al. 2025, EF21-Muon, arXiv:2510.00643, algorithm 3"
    promise: ClassVar[str] = "Muon's loss at 7 times fewer bytes (Gruntkowska et al. 2025)."
    seen: ClassVar[str] = "Not seen: top-k of differences follows noise, as with EF21."

    ratio: float = 0.1
    beta: float = 0.9

    @property
    def expression(self) -> str:  # noqa: D102
        return f"topk:{self.ratio}+ef21+lion:{self.beta},beta2={self.beta}"


@final
@dataclass(frozen=True)
class DiLoCoX(Recipe):
    """What DiLoCoX sends of a pseudo-gradient: low-rank factors in four bits, with feedback.

    For DiLoCo whose outer step comes one round late, behind the next round's steps:

        diloco:125,overlap=125/allreduce/dilocox

    The paper also lowers the rank, and lengthens rounds, as the rank of Δ that it measures falls; here both stay.
    Written from the paper's abstract and from memory. It reports 357 times the throughput of plain all-reduce for a 107
    B model over 1 Gb/s, without loss of quality.

    Attributes:
        rank: columns of the factors.
        values: `int4`, `int8` or `full`.
    """

    name: ClassVar[str] = "dilocox"
    title: ClassVar[str] = "low-rank factors in few bits, with feedback, for late rounds"
    paper: ClassVar[str] = "Qi et al. 2025, DiLoCoX, arXiv:2506.21263, algorithms 1 and 2"
    promise: ClassVar[str] = (
        "DiLoCo of 107 billion parameters over 1 Gb/s, 357 times as fast as all-reduce, at little loss (Qi "
        "et al. 2025)."
    )
    seen: ClassVar[str] = "Seen: no worse than late DiLoCo without compression."

    rank: int = 16
    values: str = "int4"

    @property
    def expression(self) -> str:  # noqa: D102
        return f"powersgd:{self.rank},factors={self.values}+ef"


RECIPES: tuple[type[Recipe], ...] = (
    DGC,
    GradientDropping,
    EFSignSGD,
    OneBitSGD,
    OneBitAdamRecipe,
    OneBitLAMB,
    ZeroOneAdam,
    DeMo,
    SketchedSGD,
    FetchSGD,
    LAGS,
    SparseTernary,
    SparseLoCo,
    DRIVE,
    DistributedLion,
    Cocktail,
    EF21Muon,
    DiLoCoX,
)
