"""What is sent: codecs, and the stages around them. A new one is a small file and a line in `MEMBERS`."""

from __future__ import annotations

from tightwire.compression.casts import BFloat16, Float16, Identity
from tightwire.compression.codec import Codec, Combine, Stage
from tightwire.compression.feedback import ErrorFeedback
from tightwire.compression.floats import Float8, Natural
from tightwire.compression.signs import EFSign, OneBit
from tightwire.compression.sparse import TopK
from tightwire.compression.sparse_ternary import STC
from tightwire.compression.uniform import QSGD, Int2, Int4, Int8, TernGrad
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
    TernGrad,
    Float8,
    Natural,
    EFSign,
    OneBit,
    TopK,
    STC,
    ErrorFeedback,
)

__all__ = [
    "MEMBERS",
    "QSGD",
    "STC",
    "BFloat16",
    "Codec",
    "Combine",
    "EFSign",
    "ErrorFeedback",
    "Float8",
    "Float16",
    "Identity",
    "Int2",
    "Int4",
    "Int8",
    "Natural",
    "OneBit",
    "Stage",
    "TernGrad",
    "TopK",
    "warm_up",
]
