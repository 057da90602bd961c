"""How long a switch that adds takes: every line carries the buffer once each way, and slots bound what is under way."""

from __future__ import annotations

from tightwire.architecture.allreduce.switched import DEFAULT_SLOT_BYTES, integer_bytes, switched_bytes
from tightwire.cluster import PRIOR_RESIDUAL, Cluster, Fit
from tightwire.compression import Codec
from tightwire.errors import PlanError
from tightwire.simulate.counts import ProgramCounts
from tightwire.transport.adding import SUM_BYTES

# Magnitudes go up and come down, the first chunk does, and hosts tell one another how it ended.
TRIPS = 3
COUNTS = ProgramCounts(messages=1, steps=TRIPS, chunks=1, sends=1, encodes=1, decodes=1)


def sent_bytes(codec: Codec, numel: int, workers: int) -> int:
    """Returns the payload bytes that each worker sends."""
    return switched_bytes(codec, numel, workers, DEFAULT_SLOT_BYTES)


def share_of_sent(codec: Codec) -> float:
    """Returns how many times more the busier direction of a line carries than a worker sends: sums may be wider.

    >>> from tightwire.compression import Identity
    >>> share_of_sent(Identity())
    1.0
    """
    size = integer_bytes(codec)
    return SUM_BYTES[size] / size


def prior(cluster: Cluster, name: str) -> Fit:
    """Returns what a buffer of N bytes takes, chunks streaming through all levels at once: the slowest level counts.

    A level that adds carries N each way over the line of what it joins. Among k workers that the switch serves by
    multicast and by reduction on reading, as NVLink SHARP does, each owns 1/k: N(1 + 1/k). A level that does not add
    goes around a ring: 2N(k − 1)/k. A pool of s slots of b bytes moves at most s·b in a trip to the switch and back
    (SwitchML, 1903.06701, section 3.6).

    Raises:
        PlanError: no switch of the cluster adds.
    """
    adding = cluster.adding
    if adding is None:
        raise PlanError(
            f"allreduce:{name} needs a switch that adds, and the cluster tells of none: write `adding: {{}}` "
            "(a star) or `adding: {levels: [node]}` into its file, or take allreduce."
        )
    levels = [(level.name, level.workers, level.bandwidth_bytes_per_s) for level in cluster.levels]
    levels = levels or [("", cluster.workers, cluster.bandwidth_bytes_per_s)]
    adds = adding.levels or (levels[-1][0],)
    known = [level for level, _, _ in levels]
    if unknown := [level for level in adds if level not in known]:
        raise PlanError(f"adding: {unknown[0]} is no level of the cluster, which has {', '.join(known)}.")
    beta, inner = 0.0, 1
    for level, workers, rate in levels:
        members, inner = workers // inner, workers
        if members < 2:
            continue
        ring, once, shared = 2 * (members - 1) / members, 1.0, 1 + 1 / members
        share = ring if level not in adds else shared if inner == levels[0][1] and level else once
        beta = max(beta, share / rate)
    if adding.slots is not None:
        beta = max(beta, 2 * cluster.latency_s / (adding.slots * adding.slot_bytes))
    return Fit(
        program=name,
        alpha_s=TRIPS * cluster.latency_s,
        beta_s_per_byte=beta,
        residual=PRIOR_RESIDUAL,
        source="prior",
    )
