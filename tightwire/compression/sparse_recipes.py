"""Named methods around sparse codecs and sketches; see `recipes`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from tightwire.compression.recipes import Recipe


@final
@dataclass(frozen=True)
class DeMo(Recipe):
    """Decoupled momentum: each worker's own, of which the strongest waves are sent and taken; for plain SGD.

    Algorithm 1: m ← βm + g, q the strongest waves of m, m ← m − q, and a step by the sign of the mean of q. Error
    feedback that decays by β is that momentum. The rate of the optimizer is a signed step's: about a tenth
    of Adam's or less.

    Attributes:
        kept: waves of each chunk that are sent.
        chunk: elements that are transformed together.
        beta: of the momentum.
    """

    name: ClassVar[str] = "demo"
    title: ClassVar[str] = "decoupled momentum: strongest waves with decaying feedback, then signs"
    paper: ClassVar[str] = "Peng, Quesnelle and Kingma 2024, DeMo, arXiv:2411.19870, Algorithm 1"

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

    ratio: float = 0.01

    @property
    def expression(self) -> str:  # noqa: D102
        return f"sketch:{self.ratio}+ef"


@final
@dataclass(frozen=True)
class FetchSGD(Recipe):
    """Heavy hitters as the summed sketch estimates them, with momentum and error feedback.

    The paper keeps momentum and error as sketches at a server. A sketch is linear: kept by the workers unsketched
    they sum to the same. Rows are five, as in the paper, of three places for every element that is recovered; there
    it is about ten, for models where a thousandth is plenty.

    Attributes:
        ratio: of the elements that are recovered.
        momentum: of the velocity that each worker accumulates.
    """

    name: ClassVar[str] = "fetchsgd"
    title: ClassVar[str] = "heavy hitters as a summed sketch estimates them, with momentum and feedback"
    paper: ClassVar[str] = "Rothchild et al. 2020, FetchSGD, arXiv:2007.07682, Algorithm 1"

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

    ratio: float = 0.001

    @property
    def expression(self) -> str:  # noqa: D102
        return f"layertopk:{self.ratio}+ef"


SPARSE_RECIPES: tuple[type[Recipe], ...] = (DeMo, SketchedSGD, FetchSGD, LAGS)
