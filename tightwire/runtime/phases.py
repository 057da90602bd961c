"""Phases at run time: policies that are several in turn, spelled out."""

from __future__ import annotations

from tightwire.errors import PlanError
from tightwire.plan import Phases


def spelled_out(phases: Phases) -> Phases:
    """Returns phases in which every policy is one thing: postlocal:8,start=500 is bsp@500~local:8.

    Raises:
        PlanError: such a policy among other phases, whose steps it would count anew.
    """
    stretches = [plan.sync.stretches() for plan in phases.plans]
    if all(len(stretch) == 1 for stretch in stretches):
        lasting = (stretch[0][0] for stretch in stretches)
        plans = [plan.having(sync=sync) for plan, sync in zip(phases.plans, lasting, strict=True)]
        return Phases(tuple(plans), phases.ends)
    if len(phases.plans) > 1:
        raise PlanError(
            f"{phases} has phases within a phase; write them out, as in bsp@500~local:8 for postlocal:8,start=500."
        )
    plan, steps = phases.plans[0], stretches[0]
    return Phases(
        tuple(plan.having(sync=sync) for sync, _ in steps), tuple(end for _, end in steps if end is not None)
    )
