"""Leaves out every wait of the runtime in turn, and shows what becomes of it: `python -m tests.traced.mutations`.

A wait is `follow` (a stream waits for a mark, or for a group of NCCL's) or `wait` (the host does), at the line of ours
that asks for it. Each is left out alone, in the jobs that reach it, until in one of them it shows as a race with both
places named, or as other numbers than the CPU's. (What the host waits for, streams need not.) The source is read for
waits, too: one that no job reaches is told, and is not caught.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.futures import Future

from tests.traced.over_nccl import nccl
from tests.traced.training import TRACED, Watched, fused, same, sgd, train
from tightwire import ddp_hook
from tightwire.devices.traced import KIND
from tightwire.errors import TightwireError
from tightwire.transport import Transport, run_threads

SOURCE = Path(__file__).parents[2] / "tightwire"
# Not of training: what a measurement waits for is read by nobody but its clock.
MEASURES = ("bench/", "profile/", "devices/")
# What a wait is called on, by name.
WAITED = {"follow": ("device", "_device"), "wait": ("device", "_device", "launched", "_launched")}


@dataclass(frozen=True)
class Outcome:
    """What a job does without one wait."""

    site: str
    job: str
    races: int
    first: str
    has_other_numbers: bool

    @property
    def is_caught(self) -> bool:
        return self.races > 0 or self.has_other_numbers


Job = Callable[[str], list[list[Tensor]]]


def plain(plan: str) -> Job:
    return lambda kind: train(plan, kind)


def scaled(plan: str) -> Job:
    """As `plain`, with a GradScaler and an optimizer that skips on the device: the host waits for no mean."""
    return lambda kind: train(plan, kind, scales=True, optimizer=fused)


def over_nccl(plan: str) -> Job:
    return lambda kind: train(plan, kind, reach=nccl(), optimizer=sgd)


class Bucket:
    """What DDP hands to a hook."""

    def __init__(self, parameter: Tensor, gradient: Tensor) -> None:
        self._parameter, self._gradient = parameter, gradient

    def index(self) -> int:
        return 0

    def is_last(self) -> bool:
        return True

    def buffer(self) -> Tensor:
        return self._gradient.view(-1)

    def gradients(self) -> list[Tensor]:
        return [self._gradient]

    def parameters(self) -> list[Tensor]:
        return [self._parameter]


class Ddp:
    """What a hook asks of DDP: it is called in backward, and its future waited for."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.hook: Callable[[Bucket], Future[Tensor]]

    def register_comm_hook(self, state: Any, hook: Callable[..., Future[Tensor]]) -> None:
        self.hook = lambda bucket: hook(state, bucket)


def hooked(plan: str) -> Job:
    """As DDP trains with a hook."""

    def work(transport: Transport, kind: str) -> list[Tensor]:
        with TRACED.side(torch.device(kind)):
            ddp = Ddp(nn.Linear(9, 5, bias=False).to(kind))
            hook = ddp_hook(plan, transport=Watched(transport) if kind == KIND else transport)
            hook.register(ddp)
            means = []
            for step in range(2):
                drawn = torch.randn(5, 9, generator=torch.Generator().manual_seed(10 * transport.rank + step))
                bucket = Bucket(ddp.module.weight, drawn.to(kind) * 2)  # type: ignore[arg-type]
                ddp.hook(bucket).wait()
                # Whoever waited for a future knows what the thread did that ended it.
                TRACED.scheduler.learn(hook._thread.submit(TRACED.scheduler.knowledge).result())
                means.append((bucket.buffer() * 1).cpu())
            hook.close()
            return means

    return lambda kind: run_threads(2, lambda transport: work(transport, kind), deadline_s=60)


# Between them these reach every wait: lanes, pinned sends, receives and native sums, methods on the host, pieces,
# a shard's turns, groups and sums of NCCL's, DDP's hook.
JOBS: dict[str, Job] = {
    "bsp": plain("bsp"),
    "bsp/allreduce:native": plain("bsp/allreduce:native"),
    "bsp/allreduce:ring/int8+ef": plain("bsp/allreduce:ring/int8+ef"),
    "bsp/allreduce/topk:0.1+ef": plain("bsp/allreduce/topk:0.1+ef"),
    "bsp/allreduce/entropy": plain("bsp/allreduce/entropy"),
    "bsp/allreduce/none/tictac": plain("bsp/allreduce/none/tictac"),
    "local:2": plain("local:2"),
    "bsp/allreduce:ring/int8+ef, scaled": scaled("bsp/allreduce:ring/int8+ef"),
    "ssp:0/ps:shards=1,on_device=true/int8+ef": plain("ssp:0/ps:shards=1,on_device=true/int8+ef"),
    "bsp/allreduce:ring over NCCL": over_nccl("bsp/allreduce:ring"),
    "bsp/allreduce:native over NCCL": over_nccl("bsp/allreduce:native"),
    "bsp/allreduce/int8+ef, DDP's hook": hooked("bsp/allreduce/int8+ef"),
}


def without(site: str, name: str, expected: list[list[Tensor]]) -> Outcome:
    """Runs a job with one wait left out; `expected` are the CPU's numbers."""
    TRACED.restart()
    TRACED.omitted = frozenset({site})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            other = not same(expected, JOBS[name](KIND))
    except (TightwireError, ValueError):  # what was read too early was not even a message
        other = True
    finally:
        TRACED.omitted = frozenset()
    races = TRACED.races
    return Outcome(site, name, len(races), str(races[0]) if races else "", other)


# Jobs that reach nothing which others do not: what is left out shows in one more of them, or in none.
MORE = ("bsp/allreduce:ring/int8+ef", "bsp/allreduce/topk:0.1+ef", "bsp/allreduce/none/tictac", "local:2")
FEW = [name for name in JOBS if name not in MORE]


def outcomes(names: Iterable[str] = tuple(JOBS)) -> list[Outcome]:
    """Leaves out every wait, each in jobs that reach it, until it is caught; then what no job reaches."""
    found: dict[str, Outcome] = {}
    for name, job in ((name, JOBS[name]) for name in names):
        expected = job("cpu")
        TRACED.restart()
        assert same(expected, job(KIND)), name
        assert not TRACED.races, (name, str(TRACED.races[0]))
        for site in sorted(TRACED.sites):
            if "training loop" not in site and (site not in found or not found[site].is_caught):
                found[site] = without(site, name, expected)
    reached = {site.split()[2] for site in found}
    unreached = [
        Outcome(f"{kind} at {lines[0]}", "no job reaches it", 0, "", False)
        for kind, lines in waits()
        if reached.isdisjoint(lines)
    ]
    return [*found.values(), *unreached]


def waits() -> Iterator[tuple[str, list[str]]]:
    """Yields every wait that the source asks for, with the lines that it takes, as file:line."""
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE).as_posix()
        if name.startswith(MEASURES):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                on = ast.unparse(node.func.value).rpartition(".")[2]
                if on in WAITED.get(node.func.attr, ()):
                    last = node.end_lineno or node.lineno
                    yield node.func.attr, [f"{name}:{line}" for line in range(node.lineno, last + 1)]


def main() -> None:
    """Prints the table."""
    print("| left out | under | races | other numbers | first race |\n|---|---|---|---|---|")
    found = outcomes()
    for o in found:
        print(f"| {o.site} | {o.job} | {o.races} | {'yes' if o.has_other_numbers else 'no'} | {o.first} |")
    caught = sum(o.is_caught for o in found)
    print(f"\n{caught} of {len(found)} missing waits are caught.")


if __name__ == "__main__":
    main()
