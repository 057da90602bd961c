"""The data-parallel leg of a layout, handed to the planner: how replicas keep in step beside everything else."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import lru_cache

from tightwire.cluster import Cluster
from tightwire.parallel.layout import Layout, layers_of_stage
from tightwire.parallel.memory import GRADIENT_BYTES, parameters_of_rank
from tightwire.parallel.network import RankGroup
from tightwire.parallel.time import BACKWARD_SHARE, Iteration, LayerCut
from tightwire.planner import Allowance, Ranking, recommend
from tightwire.profile import Profile
from tightwire.profile.devices import SOME_GPU

PLAIN = "bsp/allreduce/none/wfbp"
# Layers of the profile that the planner sees; more would change little and cost its time.
MAX_LAYERS = 24
DIGITS = 3
# Below this share of a step, a leg is not worth a plan of its own.
LEAST_GAIN = 0.02


@dataclass(frozen=True, kw_only=True)
class Leg:
    """How replicas keep in step.

    Attributes:
        plan: its text.
        exposed_s: time that nothing hides, per step.
        why: a sentence.
    """

    plan: str
    exposed_s: float
    why: str


def plan_leg(cut: LayerCut, iteration: Iteration, cluster: Cluster, allow: Allowance) -> Leg:
    """Returns the plan by which replicas of the same parameters average, beside what shards exchange.

    Where every share of the batch keeps a part of the state alone (ZeRO over all of them), their reduce-scatters and
    all-gathers are that exchange, exact in every step.
    """
    how = cut.how
    replicas = replicas_of(how)
    if how.data * how.context == 1:
        return Leg(
            plan="bsp", exposed_s=0.0, why="There is one copy of every parameter: nothing is averaged."
        )
    if replicas == 1:
        spread = how.data * how.context
        why = f"State is spread over {spread} ranks, and {how.shard} exchanges it exactly in every step."
        return Leg(plan=PLAIN, exposed_s=iteration.data_s, why=why)
    if allow == "lossless" and iteration.data_s < LEAST_GAIN * iteration.seconds:
        why = f"The {replicas} replicas of each parameter average exactly: {iteration.data_s:.3g} s wait for it."
        return Leg(plan=PLAIN, exposed_s=iteration.data_s, why=why)
    near = how.data // replicas
    group = RankGroup(replicas, cut.groups["data"].stride * near)
    rate = 1 / cut.network.ring_s_per_byte(group)
    shared, experts = parameters_of_rank(cut.model, how)
    numel = (shared + experts / how.expert) / near / how.context
    busy_s = iteration.seconds - iteration.data_s - iteration.optimizer_s
    ranking = _ranked(
        replicas,
        _rounded(min(rate, 200e9)),
        _rounded(cut.network.latency_s(group) / 2 / max(1, replicas.bit_length())),
        round(_rounded(numel)),
        min(MAX_LAYERS, layers_of_stage(cut.model, how)),
        _rounded(busy_s),
        _rounded(cut.devices.memory_bytes_per_s),
        allow,
    )
    chosen, stock = ranking.chosen, ranking.stock
    if ranking.stays:
        why = (
            f"The {replicas} replicas of each parameter average exactly: no plan gains over plain all-reduce."
        )
        return Leg(plan=str(chosen.plan), exposed_s=iteration.data_s, why=why)
    spared_s = max(0.0, stock.exposed_s - chosen.exposed_s)
    why = (
        f"The {replicas} replicas of each parameter keep in step by {chosen.plan}: {chosen.exposed_s:.3g} s of a step "
        f"wait for it, against {stock.exposed_s:.3g} s under plain all-reduce."
    )
    return Leg(plan=str(chosen.plan), exposed_s=max(0.0, iteration.data_s - spared_s), why=why)


def replicas_of(how: Layout) -> int:
    """Returns how many shares of the batch hold the same state."""
    return how.data // (how.shard_group or how.data) if how.shard != "none" else how.data


@lru_cache(maxsize=256)
def _ranked(
    replicas: int,
    rate: float,
    latency_s: float,
    numel: int,
    layers: int,
    busy_s: float,
    memory_bytes_per_s: float,
    allow: Allowance,
) -> Ranking:
    """Asks the planner; the same question, to three digits, once. Buckets and codecs are on the device."""
    assert GRADIENT_BYTES == 4
    profile = Profile.uniform(
        layers=layers,
        numel_per_layer=max(1, numel // layers),
        forward_s=busy_s * (1 - BACKWARD_SHARE),
        backward_s=busy_s * BACKWARD_SHARE,
    )
    on = dataclasses.replace(SOME_GPU, memory_bytes_per_s=memory_bytes_per_s)
    profile = dataclasses.replace(on.priced(profile), device=on.name)
    return recommend(profile, Cluster.uniform(replicas, rate, latency_s), allow=allow)


def _rounded(number: float) -> float:
    return float(f"{number:.{DIGITS}g}")
