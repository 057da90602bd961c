"""Agreeing on a mean: by a codec over a program, or by a method that talks while it compresses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tightwire.answers import Member
from tightwire.averaging.acpsgd import ACPSGD
from tightwire.averaging.atomo import Atomo
from tightwire.averaging.count_sketch import CountSketch
from tightwire.averaging.dion import Dion
from tightwire.averaging.double_squeeze import DoubleSqueeze
from tightwire.averaging.entropy import Entropy
from tightwire.averaging.gtopk import GTopK
from tightwire.averaging.layertopk import LayerTopK
from tightwire.averaging.majority_vote import MajorityVote
from tightwire.averaging.mean_sign import MeanSign
from tightwire.averaging.method import AveragingMethod
from tightwire.averaging.oktopk import OkTopK
from tightwire.averaging.powersgd import PowerSGD
from tightwire.averaging.robust import Median, TrimmedMean
from tightwire.averaging.sparcml import SparCML
from tightwire.averaging.thc import THC
from tightwire.averaging.zstd import Zstd

if TYPE_CHECKING:
    from tightwire.averaging.averager import Averager
    from tightwire.averaging.bucket import BucketAverager
    from tightwire.averaging.build import all_reduce_averager, build_averager

MEMBERS: tuple[type[Member], ...] = (
    PowerSGD,
    ACPSGD,
    GTopK,
    OkTopK,
    SparCML,
    DoubleSqueeze,
    MajorityVote,
    Zstd,
    Entropy,
    Atomo,
    LayerTopK,
    CountSketch,
    THC,
    MeanSign,
    Median,
    TrimmedMean,
    Dion,
)

__all__ = [
    "ACPSGD",
    "MEMBERS",
    "THC",
    "Atomo",
    "Averager",
    "AveragingMethod",
    "BucketAverager",
    "CountSketch",
    "Dion",
    "DoubleSqueeze",
    "Entropy",
    "GTopK",
    "LayerTopK",
    "MajorityVote",
    "MeanSign",
    "Median",
    "OkTopK",
    "PowerSGD",
    "SparCML",
    "TrimmedMean",
    "Zstd",
    "all_reduce_averager",
    "build_averager",
]

# Loaded on first use: they need torch, and members do not.
_LAZY = {
    "Averager": "averager",
    "BucketAverager": "bucket",
    "all_reduce_averager": "build",
    "build_averager": "build",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return vars(importlib.import_module(f"{__name__}.{_LAZY[name]}"))[name]
