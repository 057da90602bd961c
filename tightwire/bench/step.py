"""How long a training step takes under every schedule, beside stock DDP and the bound, in one run.

The launching half builds the lab; the working half, `python -m tightwire.bench.step JSON`, runs on its hosts.
Compute is emulated: timed waits that release the processor, as on an accelerator, so that two cores can stand for
many machines. Each plan trains the same model from scratch in the same processes.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from tightwire.bench.programs import PAYLOAD_SHARE
from tightwire.bench.ranks import run_ranks
from tightwire.errors import PlanError
from tightwire.lab import Lab, Topology
from tightwire.plan import Plan
from tightwire.profile.models import model_shape
from tightwire.schedule import Auto

if TYPE_CHECKING:
    from torch import nn

ITEM_BYTES = 4
FORWARD_SHARE = 1 / 3
DDP = "ddp"
ALONE = "alone"  # no exchange at all
DDP_SIZES_MB = (1, 2, 4, 8, 16, 32)
FUSION_SIZES = ("512KiB", "1MiB", "2MiB", "4MiB", "8MiB", "16MiB", "32MiB")
SCHEDULES = (
    "sequential", "wfbp", "mgwfbp", "ascwfbp", "tictac", "p3:1MiB", "pace", "bytescheduler",
    "bytescheduler:512KiB,2MiB,128KiB", "bytescheduler:1MiB,3MiB,256KiB", "bytescheduler:1MiB,4MiB,256KiB",
    "bytescheduler:2MiB,4MiB,512KiB", "bytescheduler:4MiB,8MiB,1MiB", "dear", "auto",
)  # fmt: skip
WARM_UP_STEPS = 7  # schedules that measure themselves have rebuilt their buckets by then
SEARCH_STEPS = 400  # `auto` may take so many before it is measured; it stops by itself


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a step computes and sends.

    Attributes:
        name: as in the table.
        layers: the sizes in elements of each layer's tensors, in the order of the forward pass.
        shares: of compute, by layer; they add up to 1. Empty where nobody knows them.
        compute_s: of a step: a third forward, two thirds backward.
    """

    name: str
    layers: tuple[tuple[int, ...], ...]
    shares: tuple[float, ...]
    compute_s: float

    @property
    def num_bytes(self) -> int:
        """Of all gradients, float32."""
        return ITEM_BYTES * sum(map(sum, self.layers))


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What to measure.

    Attributes:
        workers: hosts in the lab.
        rate_bytes_per_s: of each host's link, each way, frame headers included.
        workload: what a step is.
        plans: texts of plans, `ddp`, `ddp:bucket_mb=N`, or `alone`: no exchange at all.
        steps: per plan, after warming up; their median counts.
    """

    workers: int
    rate_bytes_per_s: float
    workload: Workload
    plans: tuple[str, ...]
    steps: int = 8

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise PlanError(f"steps={self.steps}: at least one step must be measured.")
        for plan in self.plans:
            if plan != ALONE and _bucket_mb(plan) is None:
                Plan.parse(plan)

    @property
    def wire_bound_s(self) -> float:
        """The least time in which each rank's line carries what an all-reduce makes it send: 2(n−1)/n·bytes."""
        share = 2 * (self.workers - 1) / self.workers
        return share * self.workload.num_bytes / (PAYLOAD_SHARE * self.rate_bytes_per_s)

    @property
    def bound_s(self) -> float:
        """No lossless step is shorter: max(compute, wire)."""
        return max(self.workload.compute_s, self.wire_bound_s)

    @property
    def order_bound_s(self) -> float:
        """No lossless step is shorter in which layers are read whole and in their order; at least `bound_s`.

        What the first k layers send leaves after the backward pass of the k-th and must be there before its forward
        pass: meanwhile only the layers before it compute. So a step lasts at least as long as the wire needs for the
        first k and the others, the k-th included, compute, for any k. `bound_s` where shares are not known.
        """
        sent, computed_before, longest_s = 0, 0.0, self.bound_s
        for tensors, share in zip(self.workload.layers, self.workload.shares, strict=False):
            if tensors:
                sent += ITEM_BYTES * sum(tensors)
                wire_s = self.wire_bound_s * sent / self.workload.num_bytes
                longest_s = max(longest_s, wire_s + (1.0 - computed_before) * self.workload.compute_s)
            computed_before += share
        return longest_s


@dataclass(frozen=True, kw_only=True)
class Row:
    """One plan.

    Attributes:
        plan: its text, or `ddp…`.
        step_s: median over steps, each from when all ranks had ended one until all have ended the next.
        ratio: step_s over the bound.
        low_s: the fastest step.
        high_s: the slowest step.
        chosen: the schedule that a search ended with; None where nothing was searched for.
    """

    plan: str
    step_s: float
    ratio: float
    low_s: float
    high_s: float
    chosen: str | None = None


def default_plans() -> tuple[str, ...]:
    """Returns stock DDP with several bucket sizes, fixed buckets and every schedule."""
    return (
        DDP,
        *(f"{DDP}:bucket_mb={size}" for size in DDP_SIZES_MB),
        *(f"bsp/allreduce/none/fusion:{size}" for size in FUSION_SIZES),
        *(f"bsp/allreduce/none/{schedule}" for schedule in SCHEDULES),
    )


def uniform(layers: int, layer_bytes: int, compute_s: float) -> Workload:
    """Returns equal layers of one tensor each."""
    return Workload(
        name=f"{layers} × {layer_bytes} B",
        layers=((layer_bytes // ITEM_BYTES,),) * layers,
        shares=(1.0 / layers,) * layers,
        compute_s=compute_s,
    )


def shaped_like(model: str, num_bytes: float, compute_s: float) -> Workload:
    """Returns a known model's tensors, scaled so that all gradients are about `num_bytes`.

    Compute is shared out by floating-point operations.
    """
    shape = model_shape(model)
    scale = num_bytes / ITEM_BYTES / shape.numel
    layers = tuple(
        tuple(max(1, round(scale * math.prod(tensor))) for tensor in layer.shapes.values())
        for layer in shape.layers
    )
    return Workload(
        name=model,
        layers=layers,
        shares=tuple(layer.forward_flops / shape.forward_flops for layer in shape.layers),
        compute_s=compute_s,
    )


def bytes_for(wire_s: float, workers: int, rate_bytes_per_s: float) -> float:
    """Returns how many bytes of gradients keep the wire busy for `wire_s`."""
    return wire_s * PAYLOAD_SHARE * rate_bytes_per_s / (2 * (workers - 1) / workers)


def measure(bench: Bench, on_row: Callable[[Row], None] = lambda row: None) -> tuple[list[Row], str]:
    """Runs the bench in a lab.

    Args:
        bench: what to measure.
        on_row: called with each row as it is there.

    Returns:
        The rows, in the order of the plans, and what the lab says of itself.

    Raises:
        LabError: no lab is possible here, or its workers failed.
    """
    with Lab(topology_of(bench), batch_scheduling=True) as lab:
        rows, about = measure_in(lab, bench, __name__, on_row)
    return rows, about + " Compute is emulated."


def measure_in(lab: Lab, bench: Bench, module: str, on_row: Callable[[Row], None]) -> tuple[list[Row], str]:
    """Runs a working half, `python -m module JSON`, on the hosts of a lab; the rest is as in `measure`."""
    rows: list[Row] = []

    def on_message(message: dict[str, Any]) -> None:
        rows.append(Row(**message))
        on_row(rows[-1])

    about = lab.describe()
    if not lab.shapes_everything:
        bench = replace(bench, plans=tuple(p for p in bench.plans if _bucket_mb(p) is None))
        about += " DDP is not shaped here, so it is not compared."
    run_ranks(lab, module, bench, on_message)
    return rows, about


def topology_of(bench: Bench) -> Topology:
    """Returns the lab's hosts and links."""
    return Topology(workers=bench.workers, rate_bytes_per_s=bench.rate_bytes_per_s)


def _bucket_mb(plan: str) -> float | None:
    """Returns DDP's bucket size; None where the plan is one of ours.

    Raises:
        PlanError: `ddp` with something else behind it.
    """
    if plan == DDP:
        return 25.0
    if not plan.startswith(DDP):
        return None
    name, _, size = plan.partition("=")
    try:
        if name == f"{DDP}:bucket_mb" and float(size) > 0:
            return float(size)
    except ValueError:
        pass
    raise PlanError(f"{plan!r}: write ddp, or ddp:bucket_mb=4.")


class Waits:
    """Waits that take in sum as long as asked: what one ends late, the next ends sooner, as a device's queue does."""

    def __init__(self) -> None:
        self._late_s = 0.0

    def __call__(self, seconds: float, since_s: float | None = None) -> None:
        """Waits about so long, from now or from a moment of `perf_counter`; uses no processor."""
        begin_s = time.perf_counter() if since_s is None else since_s
        time.sleep(max(0.0, begin_s + seconds - self._late_s - time.perf_counter()))
        self._late_s += time.perf_counter() - begin_s - seconds


def emulated(workload: Workload) -> nn.Module:
    """Builds a model whose layers wait instead of computing, and whose gradients are zeros."""
    import torch
    from torch import Tensor, nn

    wait = Waits()

    class Timed(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, seconds: float, *weights: Tensor) -> Tensor:
            ctx.seconds, ctx.shapes = 2.0 * seconds, [w.shape for w in weights]
            wait(seconds)
            return x + 0

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Any:
            begin_s = time.perf_counter()
            made = [torch.zeros(shape) for shape in ctx.shapes]  # that takes time, of what the layer has
            wait(ctx.seconds, begin_s)
            return (gradients[0], None, *made)

    class Layer(nn.Module):
        def __init__(self, sizes: tuple[int, ...], seconds: float) -> None:
            super().__init__()
            # Its own, as a real layer's are: whoever overlaps the forward pass sees by this when they are read.
            for number, size in enumerate(sizes):
                self.register_parameter(f"weight{number}", nn.Parameter(torch.zeros(size)))
            self.seconds = seconds

        def forward(self, x: Tensor) -> Tensor:
            weights = tuple(self.parameters(recurse=False))
            y: Tensor = Timed.apply(x, self.seconds, *weights)  # type: ignore[no-untyped-call]
            return y

    forward_s = FORWARD_SHARE * workload.compute_s
    return nn.Sequential(
        *(
            Layer(sizes, share * forward_s)
            for sizes, share in zip(workload.layers, workload.shares, strict=True)
        )
    )


class Subject(Protocol):
    """What is trained: a fresh model for each plan, and the loss whose backward makes a step."""

    def model(self) -> nn.Module:
        """Builds the model, the same on every rank."""

    def loss(self, called: Callable[[Any], Any]) -> Any:
        """Returns a scalar from the model, or from what wraps it."""


class Emulated:
    """The workload's tensors, and waits in place of compute."""

    def __init__(self, workload: Workload) -> None:
        import torch

        self._workload, self._x = workload, torch.zeros(1, requires_grad=True)

    def model(self) -> nn.Module:
        """Builds the model."""
        return emulated(self._workload)

    def loss(self, called: Callable[[Any], Any]) -> Any:
        """Returns a sum."""
        return called(self._x).sum()


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A model bound to its replicas.

    Attributes:
        step: makes one.
        is_settled: whether it is ready to be measured.
        chosen: the schedule that was searched for; None where none is.
    """

    step: Callable[[], None]
    is_settled: Callable[[], bool] = lambda: True
    chosen: Callable[[], str | None] = lambda: None


class Worker:
    """One rank of the bench."""

    def __init__(self, bench: Bench, subject: Subject) -> None:
        import torch

        import tightwire.transport as transport

        torch.set_num_threads(1)
        self.bench, self.subject, self.transport = bench, subject, transport.init()

    def run(self) -> None:
        """Measures every plan; rank 0 prints a row each."""
        for plan in self.bench.plans:
            self._tell(self._measured(plan))

    def run_beside_alone(self) -> None:
        """Measures all ranks computing at once without an exchange, which is then what compute is, and every plan."""
        alone = self._measured(ALONE)
        self.bench = replace(self.bench, workload=replace(self.bench.workload, compute_s=alone.step_s))
        self._tell(replace(alone, ratio=alone.step_s / self.bench.bound_s))
        self.run()

    def _measured(self, plan: str) -> Row:
        with self._bound(plan) as trained:
            return self._row(plan, self._time(trained), trained.chosen())

    def _tell(self, row: Row) -> None:
        if self.transport.rank == 0:
            print(json.dumps(asdict(row)), flush=True)

    @contextlib.contextmanager
    def _bound(self, plan: str) -> Iterator[Trained]:
        """Binds a fresh model to its replicas."""
        import torch
        from torch.nn.parallel import DistributedDataParallel

        from tightwire._attach import attach

        model = self.subject.model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def step(called: nn.Module) -> None:
            optimizer.zero_grad()
            self.subject.loss(called).backward()
            optimizer.step()

        if plan == ALONE:
            yield Trained(step=lambda: step(model))
            return
        bucket_mb = _bucket_mb(plan)
        if bucket_mb is not None:
            wrapped = DistributedDataParallel(model, bucket_cap_mb=bucket_mb)
            yield Trained(step=lambda: step(wrapped))
            return
        asked = Plan.parse(plan).schedule
        with attach(model, optimizer, plan, transport=self.transport) as run:
            yield Trained(
                step=lambda: step(model),
                is_settled=lambda: run.is_settled,
                chosen=lambda: str(run.plan.schedule) if isinstance(asked, Auto) else None,
            )

    def _time(self, trained: Trained) -> list[float]:
        """Returns the seconds of each step, from when all ranks had ended one until all have ended the next."""
        for number in range(SEARCH_STEPS):
            if number >= WARM_UP_STEPS and trained.is_settled():
                break
            trained.step()
        self.transport.barrier()
        trained.step()
        ends_s = [time.perf_counter()]
        for _ in range(self.bench.steps):
            trained.step()
            ends_s.append(time.perf_counter())
        # The hosts of a lab are one machine: their clocks are one.
        everyone = [json.loads(text) for text in self.transport.exchange(json.dumps(ends_s).encode())]
        ends_s = [max(of_step) for of_step in zip(*everyone, strict=True)]
        return [b - a for a, b in itertools.pairwise(ends_s)]

    def _row(self, plan: str, steps_s: list[float], chosen: str | None) -> Row:
        step_s = statistics.median(steps_s)
        return Row(
            plan=plan,
            step_s=step_s,
            ratio=step_s / self.bench.bound_s,
            low_s=min(steps_s),
            high_s=max(steps_s),
            chosen=chosen,
        )


def read(text: str) -> Bench:
    """Reads a bench as `measure_in` writes it."""
    fields = json.loads(text)
    workload = fields["workload"]
    workload["layers"] = tuple(map(tuple, workload["layers"]))
    return Bench(**fields | {"workload": Workload(**workload), "plans": tuple(fields["plans"])})


if __name__ == "__main__":
    asked = read(sys.argv[1])
    Worker(asked, Emulated(asked.workload)).run()
