"""Tightwire makes PyTorch training fast on the network you have."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tightwire._attach import attach
    from tightwire.cluster import Cluster
    from tightwire.compression import check_codec
    from tightwire.errors import TightwireError
    from tightwire.integrations import ddp_buckets, ddp_hook
    from tightwire.integrations.fsdp import fsdp_hook
    from tightwire.parallel import parallelise
    from tightwire.plan import Plan, PlanFile
    from tightwire.planner import Ranking, predict, recommend
    from tightwire.profile import Profile
    from tightwire.runtime import Race, Report, Run
    from tightwire.simulate import Prediction
    from tightwire.transport import device, init, shutdown

# Loaded on first use, so that planning needs no torch and importing costs nothing.
_HOMES = {
    "Cluster": "cluster",
    "Plan": "plan",
    "PlanFile": "plan",
    "Prediction": "simulate",
    "Profile": "profile",
    "Ranking": "planner",
    "Race": "runtime",
    "Report": "runtime",
    "Run": "runtime",
    "TightwireError": "errors",
    "attach": "_attach",
    "check_codec": "compression",
    "ddp_buckets": "integrations",
    "ddp_hook": "integrations",
    "device": "transport",
    "fsdp_hook": "integrations.fsdp",
    "init": "transport",
    "parallelise": "parallel",
    "predict": "planner",
    "recommend": "planner",
    "shutdown": "transport",
}

__all__ = [
    "Cluster",
    "Plan",
    "PlanFile",
    "Prediction",
    "Profile",
    "Race",
    "Ranking",
    "Report",
    "Run",
    "TightwireError",
    "attach",
    "check_codec",
    "ddp_buckets",
    "ddp_hook",
    "device",
    "fsdp_hook",
    "init",
    "parallelise",
    "predict",
    "recommend",
    "shutdown",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tightwire' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"tightwire.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


def _load_extensions() -> None:
    import os

    if os.environ.get("TIGHTWIRE_IMPORT"):
        importlib.import_module("tightwire.extensions").load_extensions()


_load_extensions()  # last: what it imports imports this
