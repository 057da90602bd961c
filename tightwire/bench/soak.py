"""Long runs in which memory, descriptors and threads must stay as they are: steps, attaches, changes of plan.

Every attach and change connects anew, by process groups of Gloo's, and PyTorch keeps up to 1 kB of each that was made
and ended, in native memory. How much is measured in the same processes, by groups that nothing of ours made
(`dist.new_group`, `dist.destroy_process_group`), and so much may memory grow for each connection.

PyTorch also keeps the last 2,000 collectives with the Python stacks that called them, up to 5 kB each (its flight
recorder, torch 2.13). Memory grows until so many were made, so soaks run without it.

Run as a module, `python -m tightwire.bench.soak JSON`, it is one worker.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import pathlib
import resource
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import torch
import torch.distributed as dist

from tightwire.bench.chaos.arena import environment_of
from tightwire.bench.chaos.faults import FAMILIES
from tightwire.errors import LabError
from tightwire.plan import Plan
from tightwire.transport import Transport
from tightwire.transport.torch_distributed import TorchDistributed

Kind = Literal["steps", "attaches", "changes"]
SAMPLES: Final = 10
# Plans between which a run changes: servers and asynchronous gossip keep the plan that they were attached with.
CHANGING: Final = tuple(plan for plan in FAMILIES if not plan.startswith(("asp", "ssp")))
# What may come without a leak: the allocator's pages, per process.
SLACK_BYTES: Final = 2 << 20
SLACK_OBJECTS: Final = 200
STOCK_GROUPS: Final = 200


@dataclass(frozen=True, kw_only=True)
class Soak:
    """One long run.

    Attributes:
        kind: what is repeated.
        plan: of all; attaches and changes go round `CHANGING`.
        times: how often.
        workers: processes on this host's loopback.
    """

    kind: Kind
    plan: str
    times: int
    workers: int


@dataclass(frozen=True)
class Held:
    """What a process holds at one moment.

    Attributes:
        resident_bytes: of memory.
        objects: that Python's collector knows.
        descriptors: that are open.
        threads: that run.
        groups: of Gloo's that were made so far.
    """

    resident_bytes: int
    objects: int
    descriptors: int
    threads: int
    groups: int = 0


@dataclass(frozen=True, kw_only=True)
class SoakRow:
    """What the worker that grew most came to hold between the middle of a run and its end.

    Attributes:
        soak: the run.
        middle: of that worker.
        end: of that worker.
        stock_bytes: that PyTorch keeps of a group that was made and ended.
    """

    soak: Soak
    middle: Held
    end: Held
    stock_bytes: float = 0.0

    @property
    def bytes_each(self) -> float:
        """Growth of memory per time."""
        return 2 * (self.end.resident_bytes - self.middle.resident_bytes) / self.soak.times

    @property
    def stock_bytes_each(self) -> float:
        """Growth of memory per time that as many stock groups cause."""
        return 2 * self.stock_bytes * (self.end.groups - self.middle.groups) / self.soak.times

    @property
    def is_flat(self) -> bool:
        """Whether nothing grew beyond what an allocator, a thread that ends, and PyTorch's own groups need."""
        middle, end = self.middle, self.end
        stock_bytes = self.stock_bytes * (end.groups - middle.groups)
        return (
            end.resident_bytes - middle.resident_bytes <= SLACK_BYTES + stock_bytes
            and end.objects - middle.objects <= SLACK_OBJECTS
            and end.descriptors <= middle.descriptors
            and end.threads <= middle.threads
        )


def soaks(plans: Sequence[str], *, steps: int, attaches: int, changes: int, workers: int) -> list[Soak]:
    """Returns the runs that are asked for: steps under each plan, then attaches and changes over all."""
    runs = [
        Soak(kind="steps", plan=plan, times=steps, workers=workers + ("servers=1" in plan)) for plan in plans
    ]
    over_all: tuple[tuple[Kind, int], ...] = (("attaches", attaches), ("changes", changes))
    runs += [Soak(kind=kind, plan="", times=times, workers=workers) for kind, times in over_all]
    return [run for run in runs if run.times]


def run(soak: Soak, timeout_s: float | None = None) -> SoakRow:
    """Runs one, in processes of its own.

    Raises:
        LabError: a worker failed.
    """
    command = [sys.executable, "-m", "tightwire.bench.soak", json.dumps(asdict(soak))]
    told = os.environ | environment_of(soak.workers) | {"OMP_NUM_THREADS": "1", "TORCH_FR_BUFFER_SIZE": "0"}
    workers = [
        subprocess.Popen(
            command,
            env=told | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(soak.workers)
    ]
    rows = []
    try:
        for rank, worker in enumerate(workers):
            out, error = worker.communicate(timeout=timeout_s)
            if worker.returncode:
                raise LabError(f"{soak.plan or soak.kind}: rank {rank} failed: {error.strip()[-400:]}")
            told = json.loads(out.splitlines()[-1])
            held = [Held(**sample) for sample in told["held"]]
            middle = held[len(held) // 2 - 1]
            rows.append(SoakRow(soak=soak, middle=middle, end=held[-1], stock_bytes=told["stock_bytes"]))
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    return max(rows, key=lambda row: (not row.is_flat, row.bytes_each))


def resident_bytes() -> int:
    """Returns the memory of this process, after a collection."""
    gc.collect()
    with suppress(AttributeError, OSError):  # glibc has it: what its allocator keeps for later is no leak
        ctypes.CDLL(None).malloc_trim(0)
    pages = int(pathlib.Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * resource.getpagesize()


def stock_bytes_each(groups: int = STOCK_GROUPS) -> float:
    """Returns by how much memory grows with each group that torch.distributed makes and ends. Every rank; blocks."""
    one, held = torch.ones(1), list[int]()
    for half in (groups // 2, groups):
        for _ in range(half):
            group = dist.new_group()
            dist.all_reduce(one, group=group)
            dist.destroy_process_group(group)
            del group
        held.append(resident_bytes())
    return max(0.0, (held[1] - held[0]) / groups)


def holds(transport: Transport) -> Held:
    """Returns what this process holds, after a collection."""
    return Held(
        resident_bytes=resident_bytes(),
        objects=len(gc.get_objects()),
        descriptors=len(list(pathlib.Path("/proc/self/fd").iterdir())),
        threads=len(list(pathlib.Path("/proc/self/task").iterdir())),
        groups=transport.num_children if isinstance(transport, TorchDistributed) else 0,
    )


def work(soak: Soak) -> tuple[list[Held], float]:
    """Does a worker's part; returns what it held at ten moments, and `stock_bytes_each` where it connected often."""
    import tightwire

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    transport = tightwire.init(deadline_s=60)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(20, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    x = torch.randn(4, 20)
    held: list[Held] = []

    def step() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    def repeat(once: Callable[[int], Any]) -> None:
        for number in range(1, soak.times + 1):
            once(number)
            if number * SAMPLES // soak.times > (number - 1) * SAMPLES // soak.times:
                held.append(holds(transport))

    def attach_once(number: int) -> None:
        with tightwire.attach(model, optimizer, CHANGING[number % len(CHANGING)]):
            step()

    match soak.kind:
        case "steps":
            with tightwire.attach(model, optimizer, soak.plan) as run:
                if not run.is_server:
                    repeat(lambda _: step())
            if not held:  # a server, which has only its end
                held.append(holds(transport))
        case "attaches":
            repeat(attach_once)
        case "changes":
            with tightwire.attach(model, optimizer, CHANGING[0]) as run:

                def change(number: int) -> None:
                    run.adopt(Plan.parse(CHANGING[number % len(CHANGING)]))
                    step()

                repeat(change)
    stock_bytes = stock_bytes_each() if soak.kind != "steps" and transport.size > 1 else 0.0
    tightwire.shutdown()
    return held, stock_bytes


if __name__ == "__main__":
    held, stock_bytes = work(Soak(**json.loads(sys.argv[1])))
    print(json.dumps({"held": [asdict(sample) for sample in held], "stock_bytes": stock_bytes}))
