"""Who talks to whom: collectives as programs that are checked, counted, timed and run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tightwire.collectives.architecture import AllReduce, Architecture, Setting
from tightwire.collectives.builders import COLLECTIVES, PROGRAMS, Recipe, build
from tightwire.collectives.checker import ALL_GATHER, ALL_REDUCE, Goal, check
from tightwire.collectives.gossip import Gossip
from tightwire.collectives.parameter_server import ParameterServer
from tightwire.collectives.program import Program, Transfer
from tightwire.collectives.traffic import PIECE_BYTES, predict_bytes

if TYPE_CHECKING:
    from tightwire.collectives.mover import Mover
    from tightwire.collectives.runner import Runner

MEMBERS: tuple[type[Architecture], ...] = (AllReduce, ParameterServer, Gossip)

__all__ = [
    "ALL_GATHER",
    "ALL_REDUCE",
    "COLLECTIVES",
    "MEMBERS",
    "PIECE_BYTES",
    "PROGRAMS",
    "AllReduce",
    "Architecture",
    "Goal",
    "Gossip",
    "Mover",
    "ParameterServer",
    "Program",
    "Recipe",
    "Runner",
    "Setting",
    "Transfer",
    "build",
    "check",
    "predict_bytes",
]


def __getattr__(name: str) -> Any:
    """Loads what runs programs on first use: it needs torch, and programs do not."""
    if name == "Runner":
        from tightwire.collectives.runner import Runner

        return Runner
    if name == "Mover":
        from tightwire.collectives.mover import Mover

        return Mover
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
