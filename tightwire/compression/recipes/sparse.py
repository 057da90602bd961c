"""Named methods that send few elements: the largest, or what a sketch finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from tightwire.answers import Rate
from tightwire.compression.recipe import Recipe


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
    seen: ClassVar[str] = (
        "Not seen: top-k of differences follows noise, as with EF21; studied under SGD, without Muon's step."
    )

    ratio: float = 0.1
    beta: float = 0.9

    @property
    def expression(self) -> str:  # noqa: D102
        return f"topk:{self.ratio}+ef21+lion:{self.beta},beta2={self.beta}"
