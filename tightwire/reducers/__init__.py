"""Agreeing on a mean: by a codec over a program, or by a method that talks while it compresses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tightwire.plan import Member
from tightwire.reducers.election import MajorityVote
from tightwire.reducers.layers import LayerTopK
from tightwire.reducers.lossless import Zstd
from tightwire.reducers.low_rank import Atomo, PowerSGD
from tightwire.reducers.reduction import Reduction
from tightwire.reducers.sketches import CountSketch
from tightwire.reducers.sparse import GTopK, OkTopK, SparCML
from tightwire.reducers.two_sided import DoubleSqueeze

if TYPE_CHECKING:
    from tightwire.reducers.averager import Averager
    from tightwire.reducers.build import all_reducer, build_reducer
    from tightwire.reducers.reducer import Reducer

MEMBERS: tuple[type[Member], ...] = (
    PowerSGD,
    GTopK,
    OkTopK,
    SparCML,
    DoubleSqueeze,
    MajorityVote,
    Zstd,
    Atomo,
    LayerTopK,
    CountSketch,
)

__all__ = [
    "MEMBERS",
    "Atomo",
    "Averager",
    "CountSketch",
    "DoubleSqueeze",
    "GTopK",
    "LayerTopK",
    "MajorityVote",
    "OkTopK",
    "PowerSGD",
    "Reducer",
    "Reduction",
    "SparCML",
    "Zstd",
    "all_reducer",
    "build_reducer",
]

# Loaded on first use: they need torch, and members do not.
_LAZY = {
    "Averager": "averager",
    "all_reducer": "build",
    "build_reducer": "build",
    "Reducer": "reducer",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
