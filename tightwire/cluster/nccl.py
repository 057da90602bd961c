"""NCCL's all-reduce where nobody measured it: α and β of two protocols, from public tables.

A small exchange goes by a tree: up and down once each, whatever the number of ranks (NCCL's tuning.cc), so that its α
grows with the logarithm of the nodes and not with the ranks as a ring's would. A large one goes by the protocol with
the most bandwidth and the larger α. What each wire takes was read off these tables of nccl-tests and rccl-tests (in
validate/data): NVLink and xGMI: 8 MI300X, 2 and 4 A100; InfiniBand and RoCE: 16 gfx950 and 16 A100 on two nodes, 37 µs
both; EFA: 16 A100 on two p4de; TCPXO: 16 H100 on two a3-megagpu. Between two nodes trees carry up to 1.9 times
what is said here, for each byte crosses once each way.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

from tightwire.cluster.fit import Fit, NcclWire
from tightwire.cluster.pieces import CostLine
from tightwire.cluster.values import Cluster

# Of the link's payload rate, what the best protocol reaches in the tables.
EFFICIENCY = 0.9
# How far the tables of one wire lie from each other, and from these formulas.
RESIDUAL = 0.35


@dataclass(frozen=True, kw_only=True)
class Way:
    """How NCCL takes a wire.

    Attributes:
        hop_s: that one level of the tree adds to a small exchange, up or down.
        large_alpha_s: of a large exchange between two nodes.
        slower: how many times as long a byte takes by the protocol of small exchanges.
    """

    hop_s: float
    large_alpha_s: float
    slower: float


INSIDE_ALPHA_S = 13e-6
INSIDE = Way(hop_s=0.0, large_alpha_s=50e-6, slower=2.0)
WAYS: Mapping[NcclWire, Way] = {
    "infiniband": Way(hop_s=12e-6, large_alpha_s=62e-6, slower=1.4),
    "efa": Way(hop_s=73e-6, large_alpha_s=813e-6, slower=2.5),
    "tcpxo": Way(hop_s=55e-6, large_alpha_s=889e-6, slower=9.0),
}


def prior(cluster: Cluster, wire: NcclWire) -> Fit:
    """Returns what NCCL's all-reduce takes among all workers of a cluster of nodes, by formula."""
    nodes = max(1, cluster.workers // cluster.levels[0].workers) if cluster.levels else cluster.workers
    depth = math.ceil(math.log2(nodes)) if nodes > 1 else 0
    way = WAYS[wire] if depth else INSIDE
    beta = 1 / (EFFICIENCY * cluster.bandwidth_bytes_per_s)
    small = CostLine(
        from_bytes=0.0, alpha_s=INSIDE_ALPHA_S + 2 * depth * way.hop_s, beta_s_per_byte=way.slower * beta
    )
    large_alpha_s = max(small.alpha_s, way.large_alpha_s * max(1, depth))
    crossing = (large_alpha_s - small.alpha_s) / (small.beta_s_per_byte - beta)
    if not crossing:
        return Fit.of(
            "native",
            [CostLine(from_bytes=0.0, alpha_s=large_alpha_s, beta_s_per_byte=beta)],
            RESIDUAL,
            "prior",
        )
    large = CostLine(from_bytes=crossing, alpha_s=large_alpha_s, beta_s_per_byte=beta)
    return Fit.of("native", [small, large], RESIDUAL, "prior")


def over(fit: Fit, cluster: Cluster, wire: NcclWire) -> Fit:
    """Returns what a program of sends and receives takes by NCCL, given what the bare links would allow.

    Each message pays what a level of NCCL's trees was seen to pay on this wire, and bytes move at the share of the
    line's rate that NCCL's own best protocol reaches: no program is flattered against the library's own.
    """
    slower = max(1.0, WAYS[wire].hop_s / cluster.latency_s) if cluster.latency_s else 1.0
    return dataclasses.replace(
        fit,
        alpha_s=fit.alpha_s * slower,
        beta_s_per_byte=fit.beta_s_per_byte / EFFICIENCY,
        residual=RESIDUAL,
    )
