"""How long collectives take on an emulated cluster, against Gloo's own and the wire bound, in one run.

The launching half builds the lab; the working half, `python -m tightwire.bench.collectives JSON`, runs on its
hosts. Programs take turns sample by sample, so that a disturbance of the machine hits all of them alike. Workers
run under SCHED_BATCH: nothing computes, and by the default class short messages measure the scheduler, and long ones
took 3 % more time, Gloo's too.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from tightwire.architecture import AllReduce, Setting
from tightwire.architecture.gossip import build_graph
from tightwire.bench.programs import (
    GLOO,
    ITEM_BYTES,
    is_gossip,
    is_switched,
    own_bound_s,
    read_program,
    require_known,
    wire_bound_s,
)
from tightwire.bench.ranks import run_ranks
from tightwire.cluster import Cluster
from tightwire.cluster.wiring import wiring_of
from tightwire.errors import PlanError
from tightwire.lab import AddingSwitch, Lab, Topology
from tightwire.transport import Transport
from tightwire.transport.helpers import expendable
from tightwire.transport.world import switch, workers_per_node

if TYPE_CHECKING:
    from torch import Tensor

BACKENDS_OWN = (GLOO, "native")
TAGS = 4  # an averager's
# Before a sample begins, in which all ranks have heard from all.
LEAVE_S = 0.02
# `auto` chooses among these, by what a probe finds.
AUTO = "auto"
AUTOS = ("native", "ring", "recursive-doubling", "halving-doubling", "direct")
PROBE_S = 8.0


@dataclass(frozen=True, kw_only=True)
class CollectivesBench:
    """What to measure.

    Attributes:
        workers: hosts in the lab.
        rate_bytes_per_s: of each host's link, each way, frame headers included.
        sizes: of the buffers, in bytes, float32.
        programs: as plans write them after `allreduce:`, with a codec after a slash: `torus,shape=2x2`,
            `hierarchical/int8`; `gossip:GRAPH`; `gloo` is stock `torch.distributed.all_reduce`, without the division
            by n.
        samples: per program and size; the median counts.
        topology: of the lab, as `Topology` reads it.
        keeps_windows: whether TCP goes on after a pause as before it; see `Lab`.
    """

    workers: int
    rate_bytes_per_s: float
    sizes: tuple[int, ...]
    programs: tuple[str, ...]
    samples: int = 7
    topology: str = "star"
    keeps_windows: bool = False

    def __post_init__(self) -> None:
        for program in self.programs:
            require_known(program)
        Topology.parse(self.topology, self.workers, self.rate_bytes_per_s)
        if self.samples < 1 or not self.sizes or min(self.sizes) < ITEM_BYTES:
            raise PlanError(
                f"samples={self.samples}, sizes={self.sizes}: at least one sample, and 4 bytes, are needed."
            )

    @property
    def lab(self) -> Topology:
        """The hosts and their links."""
        return Topology.parse(self.topology, self.workers, self.rate_bytes_per_s)

    @property
    def num_samples(self) -> int:
        """How many samples will be taken in all."""
        return len(self.sizes) * len(self.programs) * self.samples


@dataclass(frozen=True, kw_only=True)
class CollectiveRow:
    """One program at one size.

    Attributes:
        program: its name.
        bytes: of the buffer.
        seconds: median over samples of the slowest rank's time.
        wire_bound_s: the least time for any all-reduce: 2(n−1)/n·bytes over the payload rate of a host's link, n
            hosts, or of a node's, n nodes; (n−1)·bytes for `allgather`, whose messages do not shrink; for
            `gossip:GRAPH` as many bytes as the busiest worker sends in a round.
        ratio: seconds over wire_bound_s.
        own_bound_s: the time in which the busiest line carries what this program sends over it, uncompressed.
        own_ratio: seconds over own_bound_s.
        low_s: the fastest sample.
        high_s: the slowest sample.
    """

    program: str
    bytes: int
    seconds: float
    wire_bound_s: float
    ratio: float
    own_bound_s: float
    own_ratio: float
    low_s: float
    high_s: float


def measure(
    bench: CollectivesBench, on_sample: Callable[[str], None] = lambda text: None
) -> tuple[list[CollectiveRow], str]:
    """Runs the bench in a lab.

    Args:
        bench: what to measure.
        on_sample: called after each sample with what was measured.

    Returns:
        The rows, by size and then by program, and what the lab says of itself.

    Raises:
        LabError: no lab is possible here, or its workers failed.
    """
    rows: list[CollectiveRow] = []

    def on_message(message: dict[str, Any]) -> None:
        if "sample" in message:
            on_sample(message["sample"])
        else:
            rows.append(CollectiveRow(**message["row"]))

    adder = AddingSwitch() if any(map(is_switched, bench.programs)) else None
    with Lab(bench.lab, batch_scheduling=True, switch=adder, keeps_windows=bench.keeps_windows) as lab:
        description = lab.describe()
        if not lab.shapes_everything:
            bench = replace(bench, programs=tuple(p for p in bench.programs if p not in BACKENDS_OWN))
            description += f" {' and '.join(BACKENDS_OWN)} are not shaped here, so they are not compared."
        run_ranks(lab, __spec__.name, bench, on_message)
    return rows, description


class CollectivesWorker:
    """One rank of the bench."""

    def __init__(self, bench: CollectivesBench) -> None:
        import torch

        import tightwire.transport as transport

        torch.set_num_threads(1)
        self.bench, self.transport = bench, transport.init()
        self._lanes: dict[tuple[int, bool], Transport] = {}
        self._setting = self._measured()

    def run(self) -> None:
        """Measures everything; rank 0 prints a line per sample and per row."""
        for num_bytes in self.bench.sizes:
            runs = {name: self._prepared(name, num_bytes) for name in self.bench.programs}
            rounds = _rounds(num_bytes)
            for run in runs.values():
                self._time(run, rounds)
            samples: dict[str, list[float]] = {name: [] for name in runs}
            for name, run in self._turns(runs):
                samples[name].append(self._time(run, rounds))
                self._print({"sample": f"{name} {num_bytes} B {samples[name][-1] * 1e3:.3f} ms"})
            for name, seconds in samples.items():
                self._print({"row": asdict(self._row(name, num_bytes, seconds))})

    def _turns(self, runs: dict[str, Callable[[], None]]) -> Iterator[tuple[str, Callable[[], None]]]:
        for _ in range(self.bench.samples):
            yield from runs.items()

    def _prepared(self, name: str, num_bytes: int) -> Callable[[], None]:
        import torch
        import torch.distributed as dist

        buffer = torch.zeros(num_bytes // ITEM_BYTES)  # sums of zeros stay what they are
        if name == GLOO:
            return lambda: dist.all_reduce(buffer)
        return self._gossiping(name, buffer) if is_gossip(name) else self._reducing(name, buffer)

    def _reducing(self, name: str, buffer: Tensor) -> Callable[[], None]:
        from tightwire.averaging import all_reduce_averager
        from tightwire.buckets import plan_layout

        architecture, codec = read_program(name)
        averager = all_reduce_averager(
            architecture,
            codec,
            self._lane(architecture),
            bucket=plan_layout({"buffer": buffer}, [[0]])[0],
            tag=TAGS * self.bench.programs.index(name),
            setting=self._setting,
        )
        mean = buffer if averager.lossless else buffer.clone()
        return lambda: averager.run(buffer, mean, seed=0)

    def _lane(self, architecture: AllReduce) -> Transport:
        """Returns a transport with as many streams as asked for, or a line to the switch; others share one."""
        if architecture.streams == 1 and not architecture.is_switched:
            return self.transport
        kind = architecture.streams, architecture.is_switched
        if kind not in self._lanes:
            self._lanes[kind] = architecture.connect(self.transport, self._setting)
        return self._lanes[kind]

    def _measured(self) -> Setting:
        """Returns what the launcher says, and what programs take here where `auto` is to choose among them."""
        from tightwire.probe import probe

        costs = {}
        if AUTO in self.bench.programs:
            costs = probe(self.transport, budget_s=PROBE_S, programs=AUTOS).costs
        return Setting(
            num_ranks=self.transport.size,
            workers_per_node=workers_per_node(),
            wiring=wiring_of(Cluster.of_graph(self.bench.lab.graph())),
            switch=switch(),
            costs=costs,
        )

    def _gossiping(self, name: str, buffer: Tensor) -> Callable[[], None]:
        from tightwire.architecture.gossip.mixers import DPSGD
        from tightwire.architecture.gossip.neighbours import Lost, Neighbours
        from tightwire.architecture.round import Round
        from tightwire.compression import Identity

        graph = build_graph(name.partition(":")[2], self.transport.size)
        neighbours = Neighbours(graph, self.transport.channel(), Lost(), tag=0)
        mixer, rounds = DPSGD(neighbours, (Identity(),), buffer), itertools.count(1)
        return lambda: mixer.prepare(buffer, Round(number=next(rounds)))

    def _time(self, run: Callable[[], None], rounds: int) -> float:
        """Returns the seconds of one round on the slowest rank."""
        self._meet()
        start_s = time.perf_counter()
        for _ in range(rounds):
            run()
        own_s = (time.perf_counter() - start_s) / rounds
        return max(float(text) for text in self.transport.exchange(str(own_s).encode()))

    def _meet(self) -> None:
        """Blocks until one instant on all ranks; the lab's hosts share the machine's clock.

        Ranks leave a barrier milliseconds apart, and the first of them would count them as the program's time.
        """
        seen_s = self.transport.exchange(str(time.perf_counter()).encode())
        time.sleep(max(0.0, max(map(float, seen_s)) + LEAVE_S - time.perf_counter()))

    def _row(self, name: str, num_bytes: int, seconds: Sequence[float]) -> CollectiveRow:
        median_s = statistics.median(seconds)
        lab = self.bench.lab
        bound_s, own_s = wire_bound_s(name, num_bytes, lab), own_bound_s(name, num_bytes, lab)
        return CollectiveRow(
            program=name,
            bytes=num_bytes,
            seconds=median_s,
            wire_bound_s=bound_s,
            ratio=median_s / bound_s,
            own_bound_s=own_s,
            own_ratio=median_s / own_s,
            low_s=min(seconds),
            high_s=max(seconds),
        )

    def _print(self, message: dict[str, Any]) -> None:
        if self.transport.rank == 0:
            print(json.dumps(message), flush=True)


def _rounds(num_bytes: int) -> int:
    """Many short rounds make a sample that a clock can measure; a long one is a sample by itself."""
    return max(1, min(50, (4 << 20) // num_bytes))


def _read(text: str) -> CollectivesBench:
    fields = json.loads(text)
    return CollectivesBench(
        **fields | {"sizes": tuple(fields["sizes"]), "programs": tuple(fields["programs"])}
    )


if __name__ == "__main__":
    with expendable():  # as the threads are that average in a run
        CollectivesWorker(_read(sys.argv[1])).run()
