"""How long collectives take on an emulated cluster, against Gloo's own and the wire bound, in one run.

The launching half builds the lab; the working half, `python -m tightwire.bench.collectives JSON`, runs on its
hosts. Programs take turns sample by sample, so that a disturbance of the machine hits all of them alike.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tightwire.collectives import PROGRAMS, build
from tightwire.errors import LabError, PlanError
from tightwire.lab import Lab, Line, Topology

GLOO = "gloo"
BACKENDS_OWN = (GLOO, "native")
PAYLOAD_SHARE = 1448 / 1514  # TCP on Ethernet with MTU 1500
SMALL_BYTES = 64 * 1024
ITEM_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What to measure.

    Attributes:
        workers: hosts in the lab.
        rate_bytes_per_s: of each host's link, each way, frame headers included.
        sizes: of the buffers, in bytes, float32.
        programs: by name; `gloo` is stock `torch.distributed.all_reduce`, without the division by n.
        samples: per program and size; the median counts.
    """

    workers: int
    rate_bytes_per_s: float
    sizes: tuple[int, ...]
    programs: tuple[str, ...]
    samples: int = 7

    def __post_init__(self) -> None:
        known = (GLOO, *PROGRAMS)
        if unknown := [name for name in self.programs if name not in known]:
            raise PlanError(f"{', '.join(unknown)} is no known program; known: {', '.join(known)}.")
        if self.samples < 1 or not self.sizes or min(self.sizes) < ITEM_BYTES:
            raise PlanError(
                f"samples={self.samples}, sizes={self.sizes}: at least one sample, and 4 bytes, are needed."
            )

    @property
    def num_samples(self) -> int:
        """How many samples will be taken in all."""
        return len(self.sizes) * len(self.programs) * self.samples


@dataclass(frozen=True, kw_only=True)
class Row:
    """One program at one size.

    Attributes:
        program: its name.
        bytes: of the buffer.
        seconds: median over samples of the slowest rank's time.
        wire_bound_s: 2(n−1)/n·bytes over the payload rate of the line; (n−1)·bytes for `allgather`, whose
            messages do not shrink.
        ratio: seconds over wire_bound_s.
        low_s: the fastest sample.
        high_s: the slowest sample.
        scheduling: of the workers: `batch` for small messages, which else measure the scheduler, or `default`.
    """

    program: str
    bytes: int
    seconds: float
    wire_bound_s: float
    ratio: float
    low_s: float
    high_s: float
    scheduling: str


def wire_bound_s(program: str, num_bytes: int, workers: int, rate_bytes_per_s: float) -> float:
    """Returns the least time in which each rank's line can carry the bytes that it must send."""
    if program in PROGRAMS and build(program, workers).gathers:
        payload_bytes = float((workers - 1) * num_bytes)
    else:
        payload_bytes = 2 * (workers - 1) / workers * num_bytes
    return payload_bytes / (PAYLOAD_SHARE * rate_bytes_per_s)


def measure(bench: Bench, on_sample: Callable[[str], None] = lambda text: None) -> tuple[list[Row], str]:
    """Runs the bench in a lab.

    Args:
        bench: what to measure.
        on_sample: called after each sample with what was measured.

    Returns:
        The rows, by size and then by program, and what the lab says of itself.

    Raises:
        LabError: no lab is possible here, or its workers failed.
    """
    rows: list[Row] = []

    def on_line(line: Line) -> None:
        if line.stream == "stdout" and line.rank == 0 and line.text.startswith("{"):
            message = json.loads(line.text)
            if "sample" in message:
                on_sample(message["sample"])
            else:
                rows.append(Row(**message["row"]))
        else:
            print(f"[{line.rank}] {line.text}", file=sys.stderr)

    topology = Topology(workers=bench.workers, rate_bytes_per_s=bench.rate_bytes_per_s)
    with Lab(topology) as lab:
        description = lab.describe()
        if not lab.shapes_everything:
            bench = replace(bench, programs=tuple(p for p in bench.programs if p not in BACKENDS_OWN))
            description += f" {' and '.join(BACKENDS_OWN)} are not shaped here, so they are not compared."
        result = lab.run([sys.executable, "-m", __spec__.name, json.dumps(asdict(bench))], on_line=on_line)
    if not result.ok:
        raise LabError(f"the bench failed: {result.describe()}. Its workers' output says why.")
    return rows, description


class Worker:
    """One rank of the bench."""

    def __init__(self, bench: Bench) -> None:
        import torch

        import tightwire.transport as transport

        torch.set_num_threads(1)
        self.bench, self.transport = bench, transport.init()

    def run(self) -> None:
        """Measures everything; rank 0 prints a line per sample and per row."""
        for num_bytes in self.bench.sizes:
            batch = num_bytes <= SMALL_BYTES
            _schedule(os.SCHED_BATCH if batch else os.SCHED_OTHER)
            runs = {name: self._prepared(name, num_bytes) for name in self.bench.programs}
            rounds = _rounds(num_bytes)
            for run in runs.values():
                self._time(run, rounds)
            samples: dict[str, list[float]] = {name: [] for name in runs}
            for name, run in self._turns(runs):
                samples[name].append(self._time(run, rounds))
                self._print({"sample": f"{name} {num_bytes} B {samples[name][-1] * 1e3:.3f} ms"})
            for name, seconds in samples.items():
                self._print(
                    {"row": asdict(self._row(name, num_bytes, seconds, "batch" if batch else "default"))}
                )

    def _turns(self, runs: dict[str, Callable[[], None]]) -> Iterator[tuple[str, Callable[[], None]]]:
        for _ in range(self.bench.samples):
            yield from runs.items()

    def _prepared(self, name: str, num_bytes: int) -> Callable[[], None]:
        import torch
        import torch.distributed as dist

        from tightwire.collectives import Runner
        from tightwire.compression import Identity

        buffer = torch.zeros(num_bytes // ITEM_BYTES)  # sums of zeros stay what they are
        if name == GLOO:
            return lambda: dist.all_reduce(buffer)
        runner = Runner(
            build(name, self.transport.size),
            self.transport,
            numel=buffer.numel(),
            dtype=buffer.dtype,
            codec=Identity(),
            tag=self.bench.programs.index(name),
        )
        return lambda: runner.run(buffer, buffer)

    def _time(self, run: Callable[[], None], rounds: int) -> float:
        """Returns the seconds of one round on the slowest rank."""
        self.transport.barrier()
        start_s = time.perf_counter()
        for _ in range(rounds):
            run()
        own_s = (time.perf_counter() - start_s) / rounds
        return max(float(text) for text in self.transport.exchange(str(own_s).encode()))

    def _row(self, name: str, num_bytes: int, seconds: Sequence[float], scheduling: str) -> Row:
        median_s = statistics.median(seconds)
        bound_s = wire_bound_s(name, num_bytes, self.bench.workers, self.bench.rate_bytes_per_s)
        return Row(
            program=name,
            bytes=num_bytes,
            seconds=median_s,
            wire_bound_s=bound_s,
            ratio=median_s / bound_s,
            low_s=min(seconds),
            high_s=max(seconds),
            scheduling=scheduling,
        )

    def _print(self, message: dict[str, Any]) -> None:
        if self.transport.rank == 0:
            print(json.dumps(message), flush=True)


def _rounds(num_bytes: int) -> int:
    """Many short rounds make a sample that a clock can measure; a long one is a sample by itself."""
    return max(1, min(50, (4 << 20) // num_bytes))


def _schedule(policy: int) -> None:
    """Puts all threads of this process under a scheduling policy; needs no privilege."""
    for task in Path("/proc/self/task").iterdir():
        os.sched_setscheduler(int(task.name), policy, os.sched_param(0))


def _read(text: str) -> Bench:
    fields = json.loads(text)
    return Bench(**fields | {"sizes": tuple(fields["sizes"]), "programs": tuple(fields["programs"])})


if __name__ == "__main__":
    Worker(_read(sys.argv[1])).run()
