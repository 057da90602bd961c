"""Measures the wire: latency and bandwidth of every pair, and how long the collectives in use take.

Everything is timed on every rank, exchanged, and decided upon alike: the slowest rank's time counts, and sizes
follow from it so that the whole stays within a budget.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch

from tightwire.architecture import Program, Runner, build
from tightwire.architecture.allreduce.traffic import predict_bytes
from tightwire.cluster import MAX_BANDWIDTH_BYTES_PER_S, Cluster, Fit, Pair
from tightwire.cluster.fit import MAX_RESIDUAL
from tightwire.compression import Identity
from tightwire.devices import device_named
from tightwire.transport import Transport, init, shutdown

HOST = torch.device("cpu")
PROGRAMS = ("native", "ring", "recursive-doubling", "allgather")
# Tournament rounds in which all pairs are tried; of larger clusters only as many.
MAX_ROUNDS = 7
PING_PONGS, FEW_PING_PONGS = 20, 6
SAMPLES = 3
# A sample lasts at least this long, so that what a link lets pass in a burst after a rest does not count.
SAMPLE_S = 0.04
MAX_RUNS = 20
# Sent bytes of the collectives' samples, as shares of the largest.
SHARES = (1 / 64, 1 / 16, 1 / 4, 1.0)
# In less time, these sizes alone, and few round trips: each costs meetings that a budget does not count.
SHORT_S, FEW_SHARES, FEW_SAMPLES = 1.0, (1.0,), 2
SMALL_BYTES = 1024
# A first estimate takes so long, less in a short probe, and is of messages that grow by so much at most.
FIRST_BYTES = 2**17
FIRST_S, MOST_GROWTH = 0.03, 8.0
MAX_BYTES = 2**26
# A quarter of the budget is for pairs; the rest is for collectives.
PAIR_SHARE = 0.25
ITEM_BYTES = 4
# One stream fills a line up to this rate: no program is faster than the line, by more than samples err. Beyond, several
# streams at once carry at most so many times what one does.
FILLED_BYTES_PER_S, MOST_ERROR, MOST_STREAMS = 150e6, 1.1, 2.5
PING_TAG, STREAM_TAG = 1, 2

Progress = Callable[[float, str], None]


@dataclass(frozen=True, kw_only=True)
class ProbePoint:
    """One measured exchange: bytes that the busiest worker sent, how long it took, and a worker's processor time."""

    sent_bytes: int
    seconds: float
    processor_s: float = 0.0


def probe(
    transport: Transport,
    *,
    budget_s: float = 10.0,
    programs: Sequence[str] = PROGRAMS,
    on_progress: Progress = lambda share, what: None,
    device: torch.device = HOST,
) -> Cluster:
    """Measures the cluster that a transport connects.

    Contract: every rank, with the same arguments; blocks for about `budget_s`; sends what fits into it.

    Args:
        transport: all workers.
        budget_s: how long it may take, in seconds; more gives larger messages and smaller errors.
        programs: to be timed and fitted, by name.
        on_progress: is told the share that is done and what comes next.
        device: in whose memory the programs' buffers are; pairs are measured in host memory.

    Returns:
        The same cluster on every rank.

    Raises:
        ProgramError: an unknown program.
        PeerError: a rank did not take part.
    """
    if transport.size == 1:  # nothing is ever sent
        return Cluster.uniform(1, MAX_BANDWIDTH_BYTES_PER_S, 0.0)
    return _Probe(transport, budget_s, tuple(programs), on_progress, device).run()


def fit(program: str, points: Sequence[ProbePoint]) -> Fit:
    """Fits α + β · bytes by least squares weighted with 1/time, neither of them negative.

    Absolute errors would leave α to chance, relative ones β: a step is the sum of many buckets' times.

    >>> fit("ring", [ProbePoint(sent_bytes=n, seconds=1e-3 + 1e-8 * n) for n in (0, 10**5, 10**6)]).residual < 1e-9
    True
    """
    alpha_s, beta = _line(points)
    if alpha_s < 0:
        alpha_s, beta = 0.0, _slope(points)
    elif beta < 0:
        alpha_s, beta = statistics.fmean(p.seconds for p in points), 0.0
    errors = [(alpha_s + beta * p.sent_bytes) / p.seconds - 1 for p in points]
    total_s = sum(p.seconds for p in points)
    residual = (sum(p.seconds * e * e for p, e in zip(points, errors, strict=True)) / total_s) ** 0.5
    largest = max(points, key=lambda p: p.sent_bytes)
    return Fit(
        program=program,
        alpha_s=alpha_s,
        beta_s_per_byte=beta,
        cpu_s_per_byte=largest.processor_s / max(1, largest.sent_bytes),
        residual=min(MAX_RESIDUAL, residual),
    )


def credible(found: Fit, points: Sequence[ProbePoint], bandwidth_bytes_per_s: float) -> Fit:
    """Returns a fit, or one at a line's rate where that is said to be exceeded far.

    Few samples on a busy machine say so, and short ones that a line lets pass in a burst.

    >>> points = [ProbePoint(sent_bytes=n, seconds=s) for n, s in ((10**3, 0.02), (10**5, 0.03), (2 * 10**5, 0.02))]
    >>> fit("native", points).beta_s_per_byte < 2e-8, credible(fit("native", points), points, 1e7).beta_s_per_byte
    (True, 1e-07)
    """
    slowest = 1 / bandwidth_bytes_per_s
    most = MOST_ERROR if bandwidth_bytes_per_s <= FILLED_BYTES_PER_S else MOST_STREAMS
    if found.beta_s_per_byte >= slowest / most:
        return found
    rest_s = statistics.fmean(max(0.0, p.seconds - slowest * p.sent_bytes) for p in points)
    return dataclasses.replace(found, alpha_s=rest_s, beta_s_per_byte=slowest)


def tournament(size: int) -> list[list[tuple[int, int]]]:
    """Returns rounds of disjoint pairs in which everybody meets everybody (the circle method).

    >>> tournament(4)
    [[(0, 3), (1, 2)], [(0, 2), (1, 3)], [(0, 1), (2, 3)]]
    """
    circle: list[int | None] = [*range(size), *([None] if size % 2 else [])]
    rounds = []
    for _ in range(len(circle) - 1):
        half = len(circle) // 2
        met = zip(circle[:half], reversed(circle[half:]), strict=True)
        rounds.append([(min(a, b), max(a, b)) for a, b in met if a is not None and b is not None])
        circle = [circle[0], circle[-1], *circle[1:-1]]
    return rounds


def _line(points: Sequence[ProbePoint]) -> tuple[float, float]:
    """Returns α and β that minimise Σ (α + βx − t)²/t."""
    a = sum(1 / p.seconds for p in points)
    b = sum(p.sent_bytes / p.seconds for p in points)
    c = sum(p.sent_bytes**2 / p.seconds for p in points)
    d, e = len(points), sum(p.sent_bytes for p in points)
    determinant = a * c - b * b
    if determinant <= 1e-12 * a * c:  # all of one size
        return d / a, 0.0
    return (c * d - b * e) / determinant, (a * e - b * d) / determinant


def _slope(points: Sequence[ProbePoint]) -> float:
    """Returns β that minimises Σ (βx − t)²/t."""
    return sum(p.sent_bytes for p in points) / sum(p.sent_bytes**2 / p.seconds for p in points)


@final
class _Probe:
    """One probe under way on one rank; every rank makes the same calls in the same order."""

    def __init__(
        self,
        transport: Transport,
        budget_s: float,
        programs: tuple[str, ...],
        on_progress: Progress,
        at: torch.device,
    ) -> None:
        self._at, self._device = at, device_named(at)
        self._transport = transport
        self._budget_s = budget_s
        self._programs = [build(name, transport.size) for name in programs]
        self._rounds = tournament(transport.size)[:MAX_ROUNDS]
        self._shares = SHARES if budget_s >= SHORT_S else FEW_SHARES
        self._samples = SAMPLES if budget_s >= SHORT_S else FEW_SAMPLES
        self._ping_pongs = PING_PONGS if budget_s >= SHORT_S else FEW_PING_PONGS
        self._on_progress = on_progress
        self._done = 0

    def run(self) -> Cluster:
        """Measures pairs, then programs."""
        self._tell("a first estimate")
        bytes_per_s = self._estimate()
        pairs = [pair for number in range(len(self._rounds)) for pair in self._round(number, bytes_per_s)]
        bandwidth = statistics.median(pair.both_ways_bytes_per_s for pair in pairs)
        return Cluster(
            workers=self._transport.size,
            bandwidth_bytes_per_s=bandwidth,
            latency_s=statistics.median(pair.latency_s for pair in pairs),
            fits=tuple(self._fit(program, bandwidth) for program in self._programs),
            pairs=tuple(sorted(pairs, key=lambda pair: pair.workers)),
        )

    def _tell(self, what: str) -> None:
        total = 1 + len(self._rounds) + len(self._programs) * (1 + len(self._shares))
        self._on_progress(self._done / total, what)
        self._done += 1

    def _estimate(self) -> float:
        """Returns the rate of a line: all send to their neighbours, more and more until it takes a while."""
        num_bytes, first_s = FIRST_BYTES, FIRST_S * min(1.0, self._budget_s / SHORT_S)
        while True:
            self._transport.barrier()
            seconds: float = max(self._gather(self._both_ways(self._neighbours, num_bytes)))
            if seconds >= first_s or num_bytes >= MAX_BYTES:
                return num_bytes / seconds
            num_bytes = round(num_bytes * min(MOST_GROWTH, max(2.0, 1.2 * first_s / seconds)))

    @property
    def _neighbours(self) -> tuple[int, int]:
        rank, size = self._transport.rank, self._transport.size
        return (rank + 1) % size, (rank - 1) % size

    def _round(self, number: int, bytes_per_s: float) -> list[Pair]:
        """Measures disjoint pairs side by side; the lower rank of a pair holds the watch."""
        self._tell(f"pairs, round {number + 1} of {len(self._rounds)}")
        seconds = self._budget_s * PAIR_SHARE / len(self._rounds) / (2 * (self._samples + 1))
        num_bytes = _clamp(bytes_per_s * seconds)
        mine = [pair for pair in self._rounds[number] if self._transport.rank in pair]
        self._transport.barrier()
        measured = [self._pair(*pair, num_bytes) for pair in mine]
        leads = [found for found, pair in zip(measured, mine, strict=True) if self._transport.rank == pair[0]]
        return [
            Pair(**{**found, "workers": tuple(found["workers"])})
            for rank in self._gather(leads)
            for found in rank
        ]

    def _pair(self, low: int, high: int, num_bytes: int) -> dict[str, Any]:
        peer = high if self._transport.rank == low else low
        leads = self._transport.rank == low
        latency_s = statistics.median(self._ping(peer, leads, 1) for _ in range(self._ping_pongs)) / 2
        streams = [self._ping(peer, leads, num_bytes) for _ in range(self._samples + 1)][1:]
        both = [self._both_ways((peer, peer), num_bytes) for _ in range(self._samples + 1)][1:]
        return {
            "workers": (low, high),
            "latency_s": latency_s,
            "bandwidth_bytes_per_s": _rate(num_bytes, statistics.median(streams) - latency_s),
            "both_ways_bytes_per_s": _rate(num_bytes, statistics.median(both)),
        }

    def _ping(self, peer: int, leads: bool, num_bytes: int) -> float:
        """Sends `num_bytes` one way and one byte back."""
        ball, answer = torch.zeros(num_bytes, dtype=torch.uint8), torch.zeros(1, dtype=torch.uint8)
        begin_s = time.perf_counter()
        if leads:
            back = self._transport.irecv(answer, peer, PING_TAG)
            self._transport.isend(ball, peer, PING_TAG).wait()
            back.wait()
        else:
            self._transport.irecv(ball, peer, PING_TAG).wait()
            self._transport.isend(answer, peer, PING_TAG).wait()
        return time.perf_counter() - begin_s

    def _both_ways(self, peers: tuple[int, int], num_bytes: int) -> float:
        """Sends `num_bytes` to one peer while receiving as many from another, or the same."""
        to, source = peers
        out, into = torch.zeros(2, num_bytes, dtype=torch.uint8)
        begin_s = time.perf_counter()
        receive = self._transport.irecv(into, source, STREAM_TAG)
        send = self._transport.isend(out, to, STREAM_TAG)
        receive.wait()
        send.wait()
        return time.perf_counter() - begin_s

    @property
    def _sample_s(self) -> float:
        """How long a sample should last: long enough, and all of them within half of the programs' budget."""
        num_samples = len(self._programs) * (1 + len(self._shares)) * self._samples
        return min(SAMPLE_S, self._budget_s * (1 - PAIR_SHARE) / 2 / num_samples)

    def _fit(self, program: Program, bytes_per_s: float) -> Fit:
        per_program_s = self._budget_s * (1 - PAIR_SHARE) / len(self._programs)
        largest = _clamp(bytes_per_s * per_program_s / (self._samples + 1) / sum(self._shares))
        targets = [SMALL_BYTES, *(max(SMALL_BYTES, round(largest * share)) for share in self._shares)]
        points = [self._point(program, target) for target in targets]
        return credible(fit(program.name, points), points, bytes_per_s)

    def _point(self, program: Program, target: int) -> ProbePoint:
        """Times a program on a buffer for which the busiest worker sends about `target` bytes."""
        self._tell(f"{program.name}, {target / 1e6:.2g} MB")
        numel = max(1, round(target / _sent_per_element(program)))
        buffer = torch.zeros(numel, device=self._at)
        runner = Runner(
            program, self._transport, numel=numel, dtype=torch.float32, codec=Identity(), device=self._at
        )
        first_s = self._sample(lambda: runner.run(buffer, buffer), 1)
        runs = round(min(MAX_RUNS, max(1.0, self._sample_s / max(self._gather(first_s)))))
        samples = [first_s] if runs == 1 else []  # what a first run costs besides is little of one so long
        begun, began_s = len(samples), time.process_time()
        while len(samples) < self._samples:
            samples.append(self._sample(lambda: runner.run(buffer, buffer), runs))
        processor_s = (time.process_time() - began_s) / ((self._samples - begun) * runs)
        *slowest, most_s = (
            max(by_rank) for by_rank in zip(*self._gather([*samples, processor_s]), strict=True)
        )
        return ProbePoint(
            sent_bytes=_sent(program, numel), seconds=statistics.median(slowest), processor_s=most_s
        )

    def _sample(self, run: Callable[[], None], runs: int) -> float:
        self._transport.barrier()
        begin_s = time.perf_counter()
        for _ in range(runs):
            run()
        self._device.drain(self._at)
        return (time.perf_counter() - begin_s) / runs

    def _gather(self, value: Any) -> list[Any]:
        return [json.loads(payload) for payload in self._transport.exchange(json.dumps(value).encode())]


def _sent(program: Program, numel: int) -> int:
    ranks = range(program.num_ranks)
    return max(predict_bytes(program, Identity(), numel, ITEM_BYTES, rank) for rank in ranks)


def _sent_per_element(program: Program) -> float:
    return _sent(program, 2**20) / 2**20


def _clamp(num_bytes: float) -> int:
    return round(min(MAX_BYTES, max(2**14, num_bytes)))


def _rate(num_bytes: int, seconds: float) -> float:
    return min(MAX_BANDWIDTH_BYTES_PER_S, num_bytes / max(seconds, 1e-9))


def main() -> None:
    """Probes inside torchrun or a lab; rank 0 prints one JSON object per line: progress, and last the cluster.

    python -m tightwire.probe '{"budget_s": 10.0, "programs": ["ring"]}'
    """
    order = json.loads(sys.argv[1])
    transport = init()
    is_first = transport.rank == 0

    def tell(share: float, what: str) -> None:
        if is_first:
            print(json.dumps({"share": share, "what": what}), flush=True)

    cluster = probe(transport, budget_s=order["budget_s"], programs=order["programs"], on_progress=tell)
    if is_first:
        print(json.dumps({"cluster": dataclasses.asdict(cluster)}), flush=True)
    shutdown()


if __name__ == "__main__":
    main()
