"""What links between workers carry, measured quickly and known alike to all."""

from __future__ import annotations

import json
import time

import torch

from tightwire.transport import Transport

PROBE_BYTES = 256 * 1024


def measure_rates(transport: Transport) -> list[list[float]]:
    """Returns bytes per second between any two workers, symmetric, the same on every rank.

    Contract: every rank; blocks. Each worker swaps `PROBE_BYTES` with every other, one at a time, in the rounds of a
    tournament; the slower of both directions counts.
    """
    rank, size = transport.rank, transport.size
    out, into = torch.zeros(PROBE_BYTES, dtype=torch.uint8), torch.zeros(PROBE_BYTES, dtype=torch.uint8)
    rates = [0.0] * size
    for number in range(size + size % 2 - 1):
        peer = opponent(rank, size, number)
        transport.barrier()
        if peer is None:
            continue
        began_s = time.perf_counter()
        hearing = transport.irecv(into, peer, 0)
        transport.isend(out, peer, 0).wait()
        hearing.wait()
        rates[peer] = PROBE_BYTES / max(time.perf_counter() - began_s, 1e-9)
    table = [json.loads(row) for row in transport.exchange(json.dumps(rates).encode())]
    return [[min(table[a][b], table[b][a]) for b in range(size)] for a in range(size)]


def probed_bytes(size: int) -> int:
    """Returns the payload bytes that each worker sends in a measurement."""
    return (size - 1) * PROBE_BYTES


def opponent(rank: int, size: int, number: int) -> int | None:
    """Returns whom `rank` meets in a round of a tournament in which each meets each once; None: it sits out.

    >>> [opponent(0, 4, number) for number in range(3)], [opponent(0, 3, number) for number in range(3)]
    ([3, 1, 2], [None, 1, 2])
    """
    places = size + size % 2
    last = places - 1
    if rank == last:
        other = number * (places // 2) % last
    else:
        other = (number - rank) % last
        other = last if other == rank else other
    return other if other < size else None
