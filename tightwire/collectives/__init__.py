"""Who talks to whom: collectives as programs that are checked, counted, timed and run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tightwire.collectives.architecture import AllReduce, Architecture
from tightwire.collectives.builders import PROGRAMS, Recipe, build
from tightwire.collectives.checker import ALL_GATHER, ALL_REDUCE, Goal, check
from tightwire.collectives.gossip import Gossip
from tightwire.collectives.parameter_server import ParameterServer
from tightwire.collectives.program import Program, Transfer
from tightwire.collectives.traffic import PIECE_BYTES, predict_bytes

if TYPE_CHECKING:
    from tightwire.collectives.runner import Runner

MEMBERS: tuple[type[Architecture], ...] = (AllReduce, ParameterServer, Gossip)

__all__ = [
    "ALL_GATHER",
    "ALL_REDUCE",
    "MEMBERS",
    "PIECE_BYTES",
    "PROGRAMS",
    "AllReduce",
    "Architecture",
    "Goal",
    "Gossip",
    "ParameterServer",
    "Program",
    "Recipe",
    "Runner",
    "Transfer",
    "build",
    "check",
    "predict_bytes",
]


def __getattr__(name: str) -> Any:
    """Loads the runner on first use: it needs torch, and programs do not."""
    if name == "Runner":
        from tightwire.collectives.runner import Runner

        return Runner
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
