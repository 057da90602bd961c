"""Flows on a graph of links: max–min fair rates, and how long a program takes when links are shared.

All flows of a step begin together; links are shared max–min fairly (progressive filling; Bertsekas and Gallager 1992,
section 6.5.2), and as flows end, those that are left speed up. Flows over the same way are one flow with a count. Where
nothing contends, a step takes its longest latency and its busiest worker's bytes over its line's rate, which is the
α–β formula exactly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tightwire.architecture import Program
from tightwire.cluster import PRIOR_RESIDUAL, Fit, LinkGraph

Floats = NDArray[np.float64]


def fair_rates(uses: Floats, counts: Floats, capacity: Floats) -> Floats:
    """Returns the max–min fair rate of each kind of flow.

    Args:
        uses: (links, kinds) 1 where a kind of flow crosses a link.
        counts: (kinds,) how many flows are of each kind.
        capacity: (links,) bytes per second.

    >>> fair_rates(np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]]), np.ones(3), np.array([1.0, 4.0])).tolist()
    [0.5, 0.5, 3.5]
    """
    rates = np.zeros(len(counts))
    left, open_ = capacity.astype(float), np.ones(len(counts), dtype=bool)
    while open_.any():
        flows = uses[:, open_] @ counts[open_]
        crossed = flows > 0
        share = np.full(len(left), np.inf)
        share[crossed] = left[crossed] / flows[crossed]
        least = share.min()
        full = share <= least * (1 + 1e-12)
        fixed = open_ & (uses[full].sum(axis=0) > 0)
        rates[fixed] = least
        left = np.maximum(left - uses[:, fixed] @ (counts[fixed] * least), 0.0)
        open_ &= ~fixed
    return rates


def step_seconds(graph: LinkGraph, flows: Sequence[tuple[int, int, float]]) -> float:
    """Returns how long flows take that begin together: (src rank, dst rank, bytes) each."""
    flows = [flow for flow in flows if flow[2] > 0]
    latency_s = max((graph.latency_s(src, dst) for src, dst, _ in flows), default=0.0)
    kinds = Counter((graph.route(src, dst), num_bytes) for src, dst, num_bytes in flows)
    if not kinds:
        return latency_s
    links = sorted({link for route, _ in kinds for link in route})
    place = {link: i for i, link in enumerate(links)}
    uses = np.zeros((len(links), len(kinds)))
    for kind, (route, _) in enumerate(kinds):
        uses[[place[link] for link in route], kind] = 1.0
    capacity = np.array([graph.directions[link].bandwidth_bytes_per_s for link in links])
    counts = np.array(list(kinds.values()), dtype=float)
    left = np.array([num_bytes for _, num_bytes in kinds], dtype=float)
    return latency_s + _drain(uses, counts, left, capacity)


def _drain(uses: Floats, counts: Floats, left: Floats, capacity: Floats) -> float:
    seconds = 0.0
    while len(left):
        rates = fair_rates(uses, counts, capacity)
        step_s = float((left / rates).min())
        left = left - rates * step_s
        seconds += step_s
        lasts = left > rates * step_s * 1e-12
        uses, counts, left = uses[:, lasts], counts[lasts], left[lasts]
    return seconds


def program_seconds(program: Program, graph: LinkGraph, chunk_bytes: Sequence[float]) -> float:
    """Returns how long a program takes on a graph: step after step, or all of a pipelined program's at once.

    A program that flows, in small pieces, takes all its steps' latencies and the bytes of the busiest link.

    Args:
        program: for as many ranks as the graph has workers.
        graph: the links.
        chunk_bytes: of each chunk.
    """
    if program.flows:
        return _flow_seconds(program, graph, chunk_bytes)
    seconds: dict[tuple[tuple[int, int, float], ...], float] = {}  # many steps are alike
    total_s = 0.0
    for _, transfers in program.steps():
        flows = tuple((t.src, t.dst, float(chunk_bytes[t.chunk])) for t in transfers)
        if flows not in seconds:
            seconds[flows] = step_seconds(graph, flows)
        total_s += seconds[flows]
    return total_s


def _flow_seconds(program: Program, graph: LinkGraph, chunk_bytes: Sequence[float]) -> float:
    load: Counter[int] = Counter()
    latency_s = 0.0
    for _, transfers in program.steps():
        latency_s += max(graph.latency_s(t.src, t.dst) for t in transfers)
        for t in transfers:
            load.update(dict.fromkeys(graph.route(t.src, t.dst), chunk_bytes[t.chunk]))
    busiest_s = max(
        (num_bytes / graph.directions[i].bandwidth_bytes_per_s for i, num_bytes in load.items()), default=0.0
    )
    return latency_s + busiest_s


def fit_on(program: Program, graph: LinkGraph, sent_share: float) -> Fit:
    """Returns α and β of a program on a graph, for chunks of equal size.

    Args:
        program: for as many ranks as the graph has workers.
        graph: the links.
        sent_share: what the busiest worker sends, as a share of the buffer: β is per byte that it sends.
    """
    size = 1e9
    chunk = size if program.gathers else size / program.num_chunks
    alpha_s = program_seconds(program, graph, [1e-9] * program.num_chunks)
    whole_s = program_seconds(program, graph, [chunk] * program.num_chunks)
    return Fit(
        program=program.name,
        alpha_s=alpha_s,
        beta_s_per_byte=(whole_s - alpha_s) / (sent_share * size) if sent_share else 0.0,
        residual=PRIOR_RESIDUAL,
        source="prior",
    )
