"""The first steps under plan="auto": under which plan they train, and what they tell of compute."""

from __future__ import annotations

import dataclasses

from tightwire.cluster import Cluster
from tightwire.planner import Allowance
from tightwire.profile import Profile

# Nothing travels during backward under this plan, so compute is seen undisturbed.
WATCHED = "bsp/allreduce/none/sequential"
WARM_UP_STEPS = 2
PROFILE_STEPS = 3
BASELINE_STEPS = 4
# Where a dense exchange takes longer than this, the first steps send less, if the allowance lets them.
CHEAP_S = 0.05
# Dense exchanges longer than this are sent as int8 and no longer as bf16, and longer than the next by powersgd.
MODERATE_S, LONG_S = 0.4, 1.0
# Where workers may part for a while, the first steps need nothing of a wire on which dense exchanges take longer than
# this, and show what steps alone take. They are kept if the plan that is chosen lets workers part, too.
PARTING, PART_S = "local:8/allreduce/int8", 0.1


def dense_exchange_s(num_bytes: int, cluster: Cluster) -> float:
    """Returns how long exact means of all gradients occupy the wire."""
    return 2 * (cluster.workers - 1) / cluster.workers * num_bytes / cluster.bandwidth_bytes_per_s


def without_waiting(profile: Profile, exposed_s: float) -> Profile:
    """Returns the profile of steps without what they waited for the wire.

    Waiting is no compute, and no sign of a busy processor either. It comes after the last gradient: within what is
    taken for the backward pass, where the exchange ends before backward returns, and else in the optimizer's time.

    >>> seen = Profile.uniform(layers=1, numel_per_layer=8, forward_s=1.0, backward_s=1.0, optimizer_s=2.0)
    >>> seen = dataclasses.replace(seen, backward_s=1.5, contention=4.5)
    >>> found = without_waiting(seen, 1.5)
    >>> found.backward_s, found.optimizer_s, round(found.contention, 6)
    (1.0, 1.0, 3.0)

    Args:
        profile: of steps in which the exchange came after backward.
        exposed_s: how long a step waited.
    """
    last_s = max((p.ready_s for p in profile.parameters), default=profile.backward_s)
    in_backward_s = min(exposed_s, profile.backward_s - last_s)
    after_s = min(exposed_s - in_backward_s, profile.optimizer_s)
    share = 1.0 - (in_backward_s + after_s) / profile.compute_s if profile.compute_s else 1.0
    return dataclasses.replace(
        profile,
        backward_s=profile.backward_s - in_backward_s,
        optimizer_s=profile.optimizer_s - after_s,
        contention=max(1.0, profile.contention * share),
    )


def watched_plan(allow: Allowance, dense_s: float) -> str:
    """Returns the plan of the first steps: mild, and cheap on a wire on which a dense exchange takes so long.

    >>> watched_plan("lossless", 2.0), watched_plan("lossy", 0.2), watched_plan("stale", 0.8)
    ('bsp/allreduce/none/sequential', 'bsp/allreduce/bf16/sequential', 'local:8/allreduce/int8')
    """
    if allow == "lossless" or dense_s <= CHEAP_S:
        return WATCHED
    if allow == "stale" and dense_s > PART_S:
        return PARTING
    compression = "bf16" if dense_s <= MODERATE_S else "int8+ef" if dense_s <= LONG_S else "powersgd:4+ef"
    return f"bsp/allreduce/{compression}/sequential"
