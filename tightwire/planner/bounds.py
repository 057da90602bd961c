"""What no order of transfers can beat: a plan's own lower bound, and where its bytes are held up."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from tightwire.architecture import AllReduce, ParameterServer, Program
from tightwire.cluster import Cluster, LinkGraph
from tightwire.compression import Codec, Identity
from tightwire.errors import PlanError, ProgramError
from tightwire.plan import Plan
from tightwire.profile import Profile
from tightwire.simulate import Collective
from tightwire.simulate.cost import costs_of
from tightwire.simulate.servers import server_wire_s

# Buckets are cut a little otherwise than the whole is: chunks are rounded, small tensors find shorter programs.
MARGIN = 0.97


def lower_bound_s(plan: Plan, profile: Profile, cluster: Cluster) -> float:
    """Returns what a step of this plan takes at least: the longer one of its compute and its bytes over the wire.

    Bytes are counted where they are known before anything is simulated: of codecs by all-reduce.

    Raises:
        PlanError: a plan that cannot be had on this cluster.
        ProgramError: likewise.
    """
    return max(compute_floor_s(plan, profile, cluster), MARGIN * wire_floor_s(plan, profile, cluster))


def compute_floor_s(plan: Plan, profile: Profile, cluster: Cluster) -> float:
    """Returns a step's compute, on the workers that are fastest with it; where servers step, without the optimizer."""
    served = not isinstance(plan.architecture, AllReduce) or plan.sync.is_served
    alone_s = profile.forward_s + profile.backward_s + (0.0 if served else profile.optimizer_s)
    return alone_s * min((kind.batch_share / kind.speed for kind in cluster.kinds), default=1.0)


def wire_floor_s(plan: Plan, profile: Profile, cluster: Cluster) -> float:
    """Returns what the bytes of a step take over the wire, one step's share of a round; 0 where it is not known."""
    sender = plan.compression[0]
    if cluster.workers == 1 or not isinstance(sender, Codec) or not plan.architecture.agrees:
        return 0.0
    final, _ = plan.sync.stretches()[-1]
    architecture = plan.architecture
    if isinstance(architecture, ParameterServer) and (final.is_served or architecture.servers):
        return server_wire_s(plan.having(sync=final), profile, cluster)
    itemsize = profile.parameters[0].itemsize
    whole = costs_of(plan, profile, cluster).bucket(profile.num_bytes // itemsize, itemsize, sender)
    return whole.wire_s * final.share_sent / final.steps_per_round


@dataclass(frozen=True, kw_only=True)
class BusiestLink:
    """Where a program's bytes are held up.

    Attributes:
        name: its ends, from and to.
        bandwidth_bytes_per_s: in that direction.
        alike: how many are as busy.
        of: how many there are.
    """

    name: str
    bandwidth_bytes_per_s: float
    alike: int
    of: int


def busiest_link(plan: Plan, profile: Profile, cluster: Cluster) -> BusiestLink | None:
    """Returns the link that a plan's program keeps busy for longest; None where lines are all alike."""
    if cluster.links is None or cluster.workers == 1:
        return None
    try:
        collective = collective_of_plan(plan, profile, cluster)
    except (PlanError, ProgramError):
        return None
    return None if collective.program is None else _busiest(collective.program, cluster.links)


def collective_of_plan(plan: Plan, profile: Profile, cluster: Cluster) -> Collective:
    """Returns the program that carries most of a plan's bytes.

    Raises:
        PlanError: a plan that cannot be had on this cluster.
        ProgramError: likewise.
    """
    sender = plan.compression[0]
    codec = sender if isinstance(sender, Codec) else Identity()
    return costs_of(plan, profile, cluster).collective_for(codec, profile.num_bytes // 4, 4)


def _busiest(program: Program, graph: LinkGraph) -> BusiestLink | None:
    load: Counter[int] = Counter()
    for transfer in program.transfers:
        load.update(graph.route(transfer.src, transfer.dst))
    busy_s = {link: count / graph.directions[link].bandwidth_bytes_per_s for link, count in load.items()}
    if not busy_s:
        return None
    busiest = max(busy_s, key=busy_s.__getitem__)
    found = graph.directions[busiest]
    return BusiestLink(
        name=f"{found.src} → {found.dst}",
        bandwidth_bytes_per_s=found.bandwidth_bytes_per_s,
        alike=sum(seconds >= busy_s[busiest] * 0.999 for seconds in busy_s.values()),
        of=len(busy_s),
    )
