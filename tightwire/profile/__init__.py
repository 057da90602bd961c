"""What a model costs on a worker: the values, and (loaded on use, they need torch) the measurements."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tightwire.profile.cost import CodecCost
from tightwire.profile.values import ParameterProfile, Profile

if TYPE_CHECKING:
    from tightwire.profile.codecs import measure_codecs, measure_pass
    from tightwire.profile.known import known_costs
    from tightwire.profile.model import Profiler, measure

_HOMES = {
    "Profiler": "model",
    "measure": "model",
    "known_costs": "known",
    "measure_codecs": "codecs",
    "measure_pass": "codecs",
}

__all__ = [
    "CodecCost",
    "ParameterProfile",
    "Profile",
    "Profiler",
    "known_costs",
    "measure",
    "measure_codecs",
    "measure_pass",
]


def __getattr__(name: str) -> Any:
    """Loads the measurements on first use: they need torch, and the values do not."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return vars(importlib.import_module(f"{__name__}.{_HOMES[name]}"))[name]
