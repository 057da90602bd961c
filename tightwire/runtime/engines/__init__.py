"""What carries a plan out at run time: one engine per way of keeping workers in step.

A new engine is a file here and a line in `ENGINES`; policies and architectures name theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch.nn import Parameter

from tightwire.plan import Plan
from tightwire.runtime.context import RunContext
from tightwire.runtime.engines.async_gossip import AsyncGossipEngine
from tightwire.runtime.engines.changes import ChangeEngine
from tightwire.runtime.engines.delayed import DelayedEngine
from tightwire.runtime.engines.engine import Counts, Engine, LoneEngine, Stepping
from tightwire.runtime.engines.gossip import GossipEngine
from tightwire.runtime.engines.gradients import GradientEngine
from tightwire.runtime.engines.grouped import GroupedEngine
from tightwire.runtime.engines.halves import HalfEngine
from tightwire.runtime.engines.lazy import LazyEngine
from tightwire.runtime.engines.parameters import ParameterEngine
from tightwire.runtime.engines.quorum import QuorumEngine
from tightwire.runtime.engines.server import ServerEngine
from tightwire.runtime.engines.shares import ShareEngine
from tightwire.runtime.engines.significance import SignificanceEngine
from tightwire.sync import Rounds, Served

__all__ = ["Counts", "Engine", "LoneEngine", "Stepping", "build_engine", "remember_alike"]


def _rounds(parameters: Mapping[str, Parameter], plan: Plan, context: RunContext) -> Engine:
    """Rounds that all workers wait for, or that end without the slow."""
    ends_early = isinstance(plan.sync, Rounds) and plan.sync.quorum_of is not None
    return (QuorumEngine if ends_early else ParameterEngine)(parameters, plan, context)


def _server(parameters: Mapping[str, Parameter], plan: Plan, context: RunContext) -> Engine:
    """Servers that step with gradients, or with what workers' own steps changed."""
    sends_changes = isinstance(plan.sync, Served) and plan.sync.sends_changes
    return (ChangeEngine if sends_changes else ServerEngine)(parameters, plan, context)


ENGINES: Mapping[str, Callable[[Mapping[str, Parameter], Plan, RunContext], Engine]] = {
    "gradients": GradientEngine,
    "delayed": DelayedEngine,
    "halves": HalfEngine,
    "lazy": LazyEngine,
    "significance": SignificanceEngine,
    "shares": ShareEngine,
    "rounds": _rounds,
    "server": _server,
    "gossip": GossipEngine,
    "asynchronous gossip": AsyncGossipEngine,
}


def build_engine(parameters: Mapping[str, Parameter], plan: Plan, context: RunContext) -> Engine:
    """Builds what carries out `plan`. Every rank, in the same order: it opens channels."""
    build = ENGINES[_name(plan)]
    if context.groups:
        return GroupedEngine(parameters, plan, context, build)
    return build(parameters, plan, context)


def remember_alike(before: Plan, after: Plan) -> bool:
    """Whether what is remembered under one plan may be taken up under the other: by all members, or by none."""
    if before.sync != after.sync or _name(before) != _name(after):
        return False
    # What servers remember is in the shards, each with its owner.
    return _name(after) != "server" or before.architecture == after.architecture


def _name(plan: Plan) -> str:
    return plan.architecture.engine or plan.sync.engine
