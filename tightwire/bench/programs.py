"""What the bench of collectives measures, by its text, and how fast the wire lets it be."""

from __future__ import annotations

import re
import statistics
from collections import Counter

from tightwire.architecture import AllReduce, Gossip, Setting, Wiring, synthesise
from tightwire.architecture.allreduce.switched import integer_bytes
from tightwire.architecture.gossip import GRAPHS, build_graph, round_program
from tightwire.cluster import Cluster
from tightwire.cluster.wiring import wiring_of
from tightwire.compression import Codec, Identity
from tightwire.errors import PlanError
from tightwire.lab import Topology
from tightwire.plan import Plan
from tightwire.transport.adding import SUM_BYTES

GLOO = "gloo"
PAYLOAD_SHARE = 1448 / 1514  # TCP on Ethernet with MTU 1500
ITEM_BYTES = 4


def split_programs(text: str) -> tuple[str, ...]:
    """Splits at commas, but for those before a named argument.

    >>> split_programs("ring,torus,shape=2x2,gloo")
    ('ring', 'torus,shape=2x2', 'gloo')
    """
    return tuple(re.split(r",(?![a-z_]+=)", text))


def require_known(program: str) -> None:
    """Refuses what the bench cannot measure.

    Raises:
        PlanError: says what it can.
    """
    if program != GLOO and not is_gossip(program):
        read_program(program)


def read_program(text: str) -> tuple[AllReduce, Codec]:
    """Reads what stands after `allreduce:` in a plan, and a codec after a slash: `ring`, `hierarchical/int8`.

    Raises:
        PlanError: no such program or codec, or one that cannot carry the other.
    """
    by, _, compression = text.partition("/")
    try:
        plan = Plan.parse(f"bsp/allreduce:{by}/{compression or 'none'}")
    except PlanError as error:
        raise PlanError(f"{text} is no known program: {error} Also known: gloo, gossip:GRAPH.") from None
    architecture, codec = plan.architecture, plan.compression[0]
    if not isinstance(architecture, AllReduce) or len(plan.compression) > 1 or not isinstance(codec, Codec):
        raise PlanError(f"{text} is not a program with one codec; write for example hierarchical/int8.")
    return architecture, codec


def is_gossip(program: str) -> bool:
    """Whether a program is `gossip:GRAPH`, one round of it."""
    return program.partition(":")[0] == Gossip.name and program.partition(":")[2] in GRAPHS


def is_switched(program: str) -> bool:
    """Whether a switch adds."""
    return program != GLOO and not is_gossip(program) and read_program(program)[0].is_switched


def wire_bound_s(program: str, num_bytes: int, lab: Topology) -> float:
    """Returns the least time in which the busiest line can carry what any all-reduce must send over it.

    Messages of `allgather` do not shrink, and a round of gossip has as many as its graph has edges.
    """
    if is_gossip(program):
        return _gossip_messages(program, lab.workers) * num_bytes / _payload_rate(lab.rate_bytes_per_s)
    gathers = program != GLOO and read_program(program)[0].by == "allgather"
    if lab.is_uneven and not gathers:
        return synthesise(_wiring(lab)).certificate.bound_s_per_byte * num_bytes
    bounds = [0.0]
    for members, inside, rate in _levels(lab):
        share = lab.workers - inside if gathers else 2 * (members - 1) / members
        bounds.append(share * num_bytes / _payload_rate(rate))
    return max(bounds)


def own_bound_s(program: str, num_bytes: int, lab: Topology) -> float:
    """Returns the time in which the busiest line carries what `program` itself sends over it, uncompressed."""
    if program == GLOO or is_gossip(program):
        return wire_bound_s(program, num_bytes, lab)
    if is_switched(program):
        sums = SUM_BYTES[integer_bytes(read_program(program)[1])]
        return num_bytes // ITEM_BYTES * sums / _payload_rate(lab.rate_bytes_per_s)
    setting = Setting(num_ranks=lab.workers, workers_per_node=lab.workers_per_node, wiring=_wiring(lab))
    numel = num_bytes // ITEM_BYTES
    built = read_program(program)[0].program_for(Identity(), numel, ITEM_BYTES, setting)
    sizes = (numel,) * built.num_chunks if built.gathers else built.chunk_sizes(numel)
    if lab.is_uneven:
        graph = lab.graph()
        load: Counter[int] = Counter()
        for t in built.transfers:
            load.update(dict.fromkeys(graph.route(t.src, t.dst), ITEM_BYTES * sizes[t.chunk]))
        return max(size / graph.directions[link].bandwidth_bytes_per_s for link, size in load.items())
    bounds = [0.0]
    for _, members, rate in _levels(lab):
        busy: Counter[tuple[str, int]] = Counter()
        for t in built.transfers:
            src, dst = t.src // members, t.dst // members
            if src != dst:
                busy.update({("out", src): sizes[t.chunk], ("in", dst): sizes[t.chunk]})
        bounds.append(ITEM_BYTES * max(busy.values(), default=0) / _payload_rate(rate))
    return max(bounds)


def _wiring(lab: Topology) -> Wiring:
    return wiring_of(Cluster.of_graph(lab.graph()))


def _levels(lab: Topology) -> list[tuple[int, int, float | None]]:
    """Returns, by level, how many members it joins, workers in each, and the rate of a member's line."""
    levels = [(lab.workers, 1, lab.rate_bytes_per_s)]
    if lab.nodes:
        levels.append((lab.nodes, lab.workers_per_node, lab.across_bytes_per_s))
    if lab.sites:
        levels.append((lab.sites, lab.workers // lab.sites, lab.between_bytes_per_s))
    return levels


def _payload_rate(rate_bytes_per_s: float | None) -> float:
    return float("inf") if rate_bytes_per_s is None else PAYLOAD_SHARE * rate_bytes_per_s


def _gossip_messages(program: str, workers: int) -> float:
    """Returns how many messages the busiest worker sends in a round, on average over the graph's period."""
    graph = build_graph(program.partition(":")[2], workers)
    rounds = [round_program(graph.at(number)) for number in range(1, graph.period + 1)]
    return statistics.fmean(max(len(r.sends(rank)) for rank in range(workers)) for r in rounds)
