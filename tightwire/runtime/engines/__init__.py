"""What carries a plan out at run time: one engine per way of keeping workers in step.

A new engine is a file here and a line in `build_engine`.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch.nn import Parameter

from tightwire.architecture import Gossip
from tightwire.plan import Plan
from tightwire.runtime.context import RunContext
from tightwire.runtime.engines.async_gossip import AsyncGossipEngine
from tightwire.runtime.engines.delayed import DelayedEngine
from tightwire.runtime.engines.engine import Alone, Engine, Retired
from tightwire.runtime.engines.gossip import GossipEngine
from tightwire.runtime.engines.gradients import GradientEngine
from tightwire.runtime.engines.lazy import LazyEngine
from tightwire.runtime.engines.parameters import ParameterEngine
from tightwire.runtime.engines.server import ServerEngine
from tightwire.runtime.engines.significance import SignificanceEngine
from tightwire.sync import Delayed, Lag

__all__ = ["Alone", "Engine", "Retired", "build_engine"]


def build_engine(parameters: Mapping[str, Parameter], plan: Plan, context: RunContext) -> Engine:
    """Builds what carries out `plan`. Every rank, in the same order: it opens channels."""
    if isinstance(plan.architecture, Gossip):
        engine = AsyncGossipEngine if plan.architecture.asynchronous else GossipEngine
        return engine(parameters, plan, context)
    if getattr(plan.sync, "is_served", False) or getattr(plan.architecture, "servers", 0):
        return ServerEngine(parameters, plan, context)
    if isinstance(plan.sync, Delayed) and plan.sync.steps:
        return DelayedEngine(parameters, plan, context)
    if isinstance(plan.sync, Lag):
        return LazyEngine(parameters, plan, context)
    exchanges = plan.sync.exchanges
    if "updates" in exchanges:
        return SignificanceEngine(parameters, plan, context)
    return (
        GradientEngine(parameters, plan, context)
        if "gradients" in exchanges
        else ParameterEngine(parameters, plan, context)
    )
