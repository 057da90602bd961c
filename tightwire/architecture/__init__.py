"""Who talks to whom: collectives as programs that are checked, counted, timed and run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tightwire.architecture.allreduce.allreduce import AllReduce
from tightwire.architecture.allreduce.builders import COLLECTIVES, PROGRAMS, ProgramRecipe, build
from tightwire.architecture.allreduce.builders.synthesis import Wiring, synthesise
from tightwire.architecture.allreduce.checker import ALL_GATHER, ALL_REDUCE, Goal, check
from tightwire.architecture.allreduce.program import Program, Transfer
from tightwire.architecture.allreduce.traffic import PIECE_BYTES, predict_bytes
from tightwire.architecture.architecture import Architecture, Setting
from tightwire.architecture.gossip import Gossip
from tightwire.architecture.server.parameter_server import ParameterServer

if TYPE_CHECKING:
    from tightwire.architecture.allreduce.mover import Mover
    from tightwire.architecture.allreduce.runner import Runner

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
    "ProgramRecipe",
    "Runner",
    "Setting",
    "Transfer",
    "Wiring",
    "build",
    "check",
    "predict_bytes",
    "synthesise",
]


def __getattr__(name: str) -> Any:
    """Loads what runs programs on first use: it needs torch, and programs do not."""
    if name == "Runner":
        from tightwire.architecture.allreduce.runner import Runner

        return Runner
    if name == "Mover":
        from tightwire.architecture.allreduce.mover import Mover

        return Mover
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
