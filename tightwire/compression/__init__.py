"""What is sent: codecs, and the stages around them. A new one is a small file and a line in `MEMBERS`."""

from __future__ import annotations

from tightwire.compression.casts import BFloat16, Float16, Identity
from tightwire.compression.codec import Codec, Combine
from tightwire.compression.corrections import Clip, Momentum
from tightwire.compression.feedback import DIANA, EF21, ErrorFeedback
from tightwire.compression.floats import Float8, Natural
from tightwire.compression.gossip import DCD, ECD, Choco, DeepSqueeze, GossipStage
from tightwire.compression.recipes import RECIPES, Recipe
from tightwire.compression.rounds import DenseEvery, DenseFirst, WarmUp
from tightwire.compression.routing import Least
from tightwire.compression.signs import EFSign, OneBit
from tightwire.compression.sparse import TopK
from tightwire.compression.sparse_ternary import STC
from tightwire.compression.stage import Memory, Stage
from tightwire.compression.uniform import NUQSGD, QSGD, Int2, Int4, Int8, TernGrad
from tightwire.compression.warm import warm_up
from tightwire.plan import Member

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
    STC,
    ErrorFeedback,
    EF21,
    DIANA,
    Momentum,
    Clip,
    WarmUp,
    DenseFirst,
    DenseEvery,
    Least,
    Choco,
    DeepSqueeze,
    DCD,
    ECD,
    *RECIPES,
)

__all__ = [
    "DCD",
    "DIANA",
    "ECD",
    "EF21",
    "MEMBERS",
    "NUQSGD",
    "QSGD",
    "STC",
    "BFloat16",
    "Choco",
    "Clip",
    "Codec",
    "Combine",
    "DeepSqueeze",
    "DenseEvery",
    "DenseFirst",
    "EFSign",
    "ErrorFeedback",
    "Float8",
    "Float16",
    "GossipStage",
    "Identity",
    "Int2",
    "Int4",
    "Int8",
    "Least",
    "Memory",
    "Momentum",
    "Natural",
    "OneBit",
    "Recipe",
    "Stage",
    "TernGrad",
    "TopK",
    "WarmUp",
    "warm_up",
]
