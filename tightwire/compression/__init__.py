"""What is sent: codecs, and the stages around them. A new one is a small file and a line in `MEMBERS`."""

from __future__ import annotations

from tightwire.answers import Member
from tightwire.compression.adacomp import AdaComp
from tightwire.compression.blocktopk import BlockTopK
from tightwire.compression.casts import BFloat16, Float16, Identity
from tightwire.compression.clip import Clip
from tightwire.compression.codec import Codec, Combine
from tightwire.compression.compiling import compile_kernels
from tightwire.compression.dct import Cosines
from tightwire.compression.dense_rounds import DenseEvery, DenseFirst, DenseGrowing
from tightwire.compression.differences import DIANA, EF21
from tightwire.compression.eden import Eden
from tightwire.compression.ef import ErrorFeedback
from tightwire.compression.ema import MovingAverage
from tightwire.compression.fp8 import Float8
from tightwire.compression.integers import Int2, Int4, Int8
from tightwire.compression.laws import LawFound, check_before_use, check_codec
from tightwire.compression.lion import Lion
from tightwire.compression.loco import LoCo
from tightwire.compression.momentum import Momentum
from tightwire.compression.natural import Natural
from tightwire.compression.nuqsgd import NUQSGD
from tightwire.compression.qsgd import QSGD
from tightwire.compression.randomk import RandomK
from tightwire.compression.recipe import Recipe
from tightwire.compression.recipes import RECIPES
from tightwire.compression.routing import Least
from tightwire.compression.sampled import Sampled
from tightwire.compression.sbc import SBC
from tightwire.compression.signed import Signed
from tightwire.compression.signs import EFSign, OneBit
from tightwire.compression.stage import Stage, StageMemory
from tightwire.compression.stc import STC
from tightwire.compression.strom import Strom
from tightwire.compression.terngrad import TernGrad
from tightwire.compression.threshold import Threshold
from tightwire.compression.topk import TopK
from tightwire.compression.variance import Variance
from tightwire.compression.wangni import Wangni
from tightwire.compression.warmup import WarmUp

MEMBERS: tuple[type[Member], ...] = (
    Identity,
    BFloat16,
    Float16,
    Int8,
    Int4,
    Int2,
    QSGD,
    NUQSGD,
    TernGrad,
    Float8,
    Natural,
    EFSign,
    OneBit,
    TopK,
    BlockTopK,
    Threshold,
    RandomK,
    Sampled,
    Wangni,
    STC,
    SBC,
    Strom,
    Cosines,
    Eden,
    ErrorFeedback,
    LoCo,
    EF21,
    DIANA,
    Momentum,
    MovingAverage,
    Lion,
    Clip,
    WarmUp,
    DenseFirst,
    DenseEvery,
    DenseGrowing,
    Least,
    AdaComp,
    Variance,
    Signed,
    *RECIPES,
)

__all__ = [
    "DIANA",
    "EF21",
    "MEMBERS",
    "NUQSGD",
    "QSGD",
    "SBC",
    "STC",
    "AdaComp",
    "BFloat16",
    "BlockTopK",
    "Clip",
    "Codec",
    "Combine",
    "Cosines",
    "DenseEvery",
    "DenseFirst",
    "DenseGrowing",
    "EFSign",
    "Eden",
    "ErrorFeedback",
    "Float8",
    "Float16",
    "Identity",
    "Int2",
    "Int4",
    "Int8",
    "LawFound",
    "Least",
    "Lion",
    "LoCo",
    "Momentum",
    "MovingAverage",
    "Natural",
    "OneBit",
    "RandomK",
    "Recipe",
    "Sampled",
    "Signed",
    "Stage",
    "StageMemory",
    "Strom",
    "TernGrad",
    "Threshold",
    "TopK",
    "Variance",
    "Wangni",
    "WarmUp",
    "check_before_use",
    "check_codec",
    "compile_kernels",
]
