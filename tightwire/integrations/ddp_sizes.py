"""The buckets of a plan, for stock DistributedDataParallel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tightwire.errors import PlanError
from tightwire.plan import Plan
from tightwire.schedule import TensorFacts, Wire

if TYPE_CHECKING:
    from torch import nn

    from tightwire.cluster import Cluster
    from tightwire.profile import Profile

BYTES_PER_MB = 2**20  # as DDP counts


def ddp_buckets(
    plan: Plan | str,
    model: nn.Module | None = None,
    *,
    profile: Profile | None = None,
    cluster: Cluster | None = None,
) -> list[float]:
    """Returns the sizes of a plan's buckets as `DistributedDataParallel(bucket_cap_mb_list=…)` takes them.

        DistributedDataParallel(model, bucket_cap_mb_list=tw.ddp_buckets("bsp/allreduce/none/fusion:4MiB", model))

    DDP closes a bucket as soon as it holds its size, so exact sizes give exactly the plan's buckets, where gradients
    become ready in the reverse order of the parameters, or as the profile says. DDP cuts nothing and lets nothing
    overtake, so of schedules that do only the buckets remain.

    Args:
        plan: whose schedule counts; the rest is DDP's.
        model: whose parameters are to be put into buckets; not needed with a profile.
        profile: measured ready times, for schedules that merge by them.
        cluster: what latency and bandwidth merging is for; with a profile.

    Raises:
        PlanError: a plan that cannot work; neither a model nor a profile; or a schedule that needs measurements and has
            none.
    """
    schedule = (Plan.parse(plan) if isinstance(plan, str) else plan).schedule
    wire = None if cluster is None else _wire(cluster)
    if schedule.measures and not schedule.overlaps_forward and (profile is None or wire is None):
        raise PlanError(
            f"{schedule} merges by measured times: give ddp_buckets a profile and a cluster, or write fusion:4MiB."
        )
    if profile is not None:
        facts = [
            TensorFacts(num_bytes=p.numel * p.itemsize, kind=p.itemsize, ready_s=p.ready_s)
            for p in profile.parameters
        ]
    elif model is not None:
        trained = [p for p in model.parameters() if p.requires_grad]
        facts = [
            TensorFacts(num_bytes=p.numel() * p.itemsize, kind=(str(p.dtype), str(p.device)))
            for p in reversed(trained)
        ]
    else:
        raise PlanError("ddp_buckets needs the model, or a profile of it: tw.ddp_buckets(plan, model).")
    partition = schedule.partition(facts) if wire is None else schedule.partition(facts, wire)
    return [sum(facts[p].num_bytes for p in bucket) / BYTES_PER_MB for bucket in partition]


def _wire(cluster: Cluster) -> Wire:
    """Returns what a ring all-reduce costs on this cluster: 2(n−1)·(α + bytes/n·β)."""
    n = cluster.workers
    steps = max(1, 2 * (n - 1))
    return Wire(latency_s=steps * cluster.latency_s, bytes_per_s=n / steps * cluster.bandwidth_bytes_per_s)
