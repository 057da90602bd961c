"""What is sent: codecs, and the stages around them. A new one is a small file and a line in `MEMBERS`."""

from __future__ import annotations

from tightwire.answers import Member
from tightwire.compression.averages import MovingAverage
from tightwire.compression.casts import BFloat16, Float16, Identity
from tightwire.compression.codec import Codec, Combine
from tightwire.compression.corrections import Clip, Momentum
from tightwire.compression.cosines import Cosines
from tightwire.compression.directions import Signed
from tightwire.compression.feedback import DIANA, EF21, ErrorFeedback
from tightwire.compression.floats import Float8, Natural
from tightwire.compression.picking import AdaComp, Variance
from tightwire.compression.recipes import RECIPES, Recipe
from tightwire.compression.rounds import DenseEvery, DenseFirst, DenseGrowing, WarmUp
from tightwire.compression.routing import Least
from tightwire.compression.signs import EFSign, OneBit
from tightwire.compression.sparse import TopK
from tightwire.compression.sparse_blocks import BlockTopK, Threshold
from tightwire.compression.sparse_random import RandomK, Wangni
from tightwire.compression.sparse_recipes import SPARSE_RECIPES
from tightwire.compression.sparse_signs import SBC, Strom
from tightwire.compression.sparse_ternary import STC
from tightwire.compression.stage import Memory, Stage
from tightwire.compression.uniform import NUQSGD, QSGD, Int2, Int4, Int8, TernGrad
from tightwire.compression.warm import warm_up

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
    Wangni,
    STC,
    SBC,
    Strom,
    Cosines,
    ErrorFeedback,
    EF21,
    DIANA,
    Momentum,
    MovingAverage,
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
    *SPARSE_RECIPES,
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
    "ErrorFeedback",
    "Float8",
    "Float16",
    "Identity",
    "Int2",
    "Int4",
    "Int8",
    "Least",
    "Memory",
    "Momentum",
    "MovingAverage",
    "Natural",
    "OneBit",
    "RandomK",
    "Recipe",
    "Signed",
    "Stage",
    "Strom",
    "TernGrad",
    "Threshold",
    "TopK",
    "Variance",
    "Wangni",
    "WarmUp",
    "warm_up",
]
