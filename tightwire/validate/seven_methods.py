"""Seven lossless methods against published throughput: fitted on one model at 4 and 8 GPUs, the rest predicted.

A method is a schedule of ours over all-reduce or over a parameter server; the simulator that serves `tightwire plan`
runs it. What is fitted, once per network, are constants of hardware and framework; what was measured on one GPU is
taken as given. Each network's constants come from BERT-Base alone, where exchanges show.

How the methods were run is in the survey's scripts (github.com/HKBU-HPML/ddl-benchmarks), and some of it is not what
the methods' names say:

- ResNet-50 is trained with plain SGD, one kernel per tensor; BERT-Base with AdamW, about eight. One GPU runs them
  while the host is ahead; after an exchange the host starts them one by one, and nothing hides that.
- MG-WFBP merges greedily, by tables of α and β that the scripts hold and not by what this network was measured to have.
- ByteScheduler over all-reduce counts its slices and its credit in parameters: 4 and 16 millions of them, so that no
  tensor of ResNet-50 is cut. One thread per process waits for every tensor, updates it and lets its layer go.
- Over servers (BytePS), every method cuts at 4,096,000 bytes, and none overlaps the next forward: what is called
  ByteScheduler there is the server's own order of work.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from tightwire.profile.models import model_shape
from tightwire.schedule import (
    BucketFacts,
    ByteScheduler,
    Partition,
    Schedule,
    Sequential,
    TensorFacts,
    Wfbp,
    Wire,
)
from tightwire.simulate.cost import BucketCost
from tightwire.simulate.step import StepSimulation
from tightwire.validate import published
from tightwire.validate.fitting import Prior, as_numbers, fit
from tightwire.validate.table import Point, Table, deviation_of, interval

SURVEY, MORE = "seven_methods_throughput.csv", "seven_methods_more_throughput.csv"
MODELS = {"ResNet-50": "resnet50", "BERT-Base": "bert-base"}
SHAPES = MODELS | {"BERT-Large": "bert-large"}
FITTED_MODEL, FITTED_GPUS = "BERT-Base", (4, 8)
GPUS_PER_NODE = 4
FORWARD_SHARE = 1 / 3
# ByteScheduler's slices and its credit: millions of parameters, of 4 bytes each.
BLOCK_BYTES, CREDIT_BYTES = 4 * 4 * 10**6, 4 * 16 * 10**6
# Kernels per tensor: plain SGD adds once; Adam scales and adds to two moments, takes a root, adds ε, divides and adds.
KERNELS = {"ResNet-50": 1, "BERT-Base": 8, "BERT-Large": 8}
# α in seconds and β in seconds per byte by which MG-WFBP merges, by GPUs: the scripts' tables.
MERGED_BY = {
    "10GbE-TCP": {
        4: (4.2e-5, 2.06e-10),
        8: (5.23e-4, 8.57e-10),
        16: (9.08e-4, 7.40e-10),
        32: (4.04e-3, 8.64e-10),
    },
    "100Gb-IB-RDMA": {
        4: (4.2e-5, 2.06e-10),
        8: (9.75e-5, 3.06e-10),
        16: (7.08e-4, 4.06e-10),
        32: (4.06e-4, 4.91e-10),
    },
}
MERGED_BY["100Gb-IB-TCP"] = MERGED_BY["100Gb-IB-RDMA"]


@dataclass(frozen=True, kw_only=True)
class Testbed:
    """Nodes of four GPUs and the frameworks on them.

    Attributes:
        inside_bytes_per_s: bus bandwidth of an all-reduce inside a node.
        across_bytes_per_s: of an all-reduce over the network.
        call_s: of a collective call.
        hop_s: of each of a ring's 2(n − 1) steps between nodes.
        local_bytes_per_s: what a node sums for its parameter server.
        server_bytes_per_s: of push and pull.
        request_s: of a push and pull.
        hook_s: that ByteScheduler's thread takes for a tensor, which holds the forward over all-reduce.
        kernel_s: that the host takes to start one of the optimizer's kernels.
        slowdown: share of compute's speed that an all-reduce beside it takes, for NCCL's kernels run on the GPU.
            Servers take none: host processors add up (BytePS, Jiang et al. 2020).
    """

    inside_bytes_per_s: float
    across_bytes_per_s: float
    call_s: float
    hop_s: float
    local_bytes_per_s: float
    server_bytes_per_s: float
    request_s: float
    hook_s: float
    kernel_s: float
    slowdown: float

    def all_reduce(self, gpus: int) -> Wire:
        """Returns what averaging a buffer costs over all-reduce."""
        if gpus <= GPUS_PER_NODE:
            return Wire(latency_s=self.call_s, bytes_per_s=self.inside_bytes_per_s / (2 * (gpus - 1) / gpus))
        latency_s = self.call_s + 2 * (gpus - 1) * self.hop_s
        return Wire(latency_s=latency_s, bytes_per_s=self.across_bytes_per_s / (2 * (gpus - 1) / gpus))

    def server(self, gpus: int) -> tuple[float, ...]:
        """Returns the seconds per byte of each stage of averaging over servers, one host per node."""
        inside = 1 / self.local_bytes_per_s
        return (inside, 1 / self.server_bytes_per_s) if gpus > GPUS_PER_NODE else (inside,)


def priors(network: str) -> dict[str, Prior]:
    """Returns where constants are expected: PCIe 3.0 × 16 inside, and the network's line rate across."""
    is_fast = "100Gb" in network
    return {
        "inside_bytes_per_s": Prior(value=6e9, spread=0.7),
        "across_bytes_per_s": Prior(value=8e9 if is_fast else 1.2e9, spread=0.7),
        "call_s": Prior(value=1e-4, spread=0.4),
        "hop_s": Prior(value=5e-6 if is_fast else 1.5e-5, spread=0.3),
        "local_bytes_per_s": Prior(value=6e9, spread=0.7),
        "server_bytes_per_s": Prior(value=6e9 if is_fast else 0.9e9, spread=0.7),
        "request_s": Prior(value=1e-4, spread=0.4),
        "hook_s": Prior(value=1e-3, spread=0.3),
        "kernel_s": Prior(value=1e-5, spread=0.7),
        "slowdown": Prior(value=0.02, spread=0.3),
    }


@dataclass(frozen=True, kw_only=True)
class SevenMethodsCase:
    """One measured run: how many samples per second all GPUs together trained on."""

    model: str
    network: str
    method: str
    gpus: int
    batch_per_gpu: int
    samples_per_s: float

    @property
    def is_fitted(self) -> bool:
        """Whether constants may be fitted on it."""
        return self.model == FITTED_MODEL and self.gpus in FITTED_GPUS


@dataclass(frozen=True, kw_only=True)
class Load:
    """A model's compute on one GPU, its tensors in the order of backward, and its optimizer's kernels."""

    compute_s: float
    tensors: tuple[TensorFacts, ...]
    kernels: int

    @property
    def num_bytes(self) -> int:
        """Of all gradients."""
        return sum(tensor.num_bytes for tensor in self.tensors)


Method = Callable[[Testbed, Load, SevenMethodsCase], float]


@dataclass(frozen=True, kw_only=True)
class MergedByTable(Schedule):
    """Merges greedily by an α and a β told beforehand (MG-WFBP, arXiv:1912.09268, algorithm 1, as the scripts have it).

    Attributes:
        believed: what an all-reduce is taken to cost.
    """

    believed: Wire
    # Smaller gradients, in parameters of 4 bytes, always travel with the next.
    LEAST_BYTES: ClassVar[int] = 4 * 8192

    def partition(self, tensors: Sequence[TensorFacts], wire: Wire | None = None) -> Partition:  # noqa: D102
        buckets: list[tuple[int, ...]] = []
        bucket: tuple[int, ...] = ()
        num_bytes, free_s = 0, 0.0
        for place, tensor in enumerate(tensors):
            bucket, num_bytes = (*bucket, place), num_bytes + tensor.num_bytes
            starts_s = max(free_s, tensor.ready_s)
            next_s = tensors[place + 1].ready_s if place + 1 < len(tensors) else math.inf
            is_worth = next_s < starts_s + self.believed.latency_s or num_bytes < self.LEAST_BYTES
            if not is_worth or place + 1 == len(tensors):
                buckets.append(bucket)
                bucket, num_bytes, free_s = (), 0, starts_s + self.believed.seconds(num_bytes)
        return tuple(buckets)


def _exchange(
    testbed: Testbed,
    load: Load,
    schedule: Schedule,
    wire: Wire,
    *,
    hooks_s: float = 0.0,
    slowdown: float = 0.0,
    last_s_per_byte: float | None = None,
) -> float:
    """Returns the step time under a schedule.

    Args:
        testbed: its constants.
        load: the model.
        schedule: of the exchange.
        wire: what averaging a buffer costs.
        hooks_s: that hooks hold the forward pass for; where there are any, they update each tensor as it comes.
        slowdown: of compute beside an exchange.
        last_s_per_byte: what the last buffer costs per byte; None: as all do.
    """
    buckets = schedule.partition(load.tensors, wire)
    facts = [
        BucketFacts(
            num_bytes=sum(load.tensors[p].num_bytes for p in bucket),
            ready_s=max(load.tensors[p].ready_s for p in bucket),
        )
        for bucket in buckets
    ]
    agenda = schedule.agenda(facts, wire)
    moving_s = [piece.num_bytes / wire.bytes_per_s for piece in agenda.pieces]
    if last_s_per_byte is not None:
        moving_s[-1] = agenda.pieces[-1].num_bytes * last_s_per_byte
    costs = [
        BucketCost(
            codec_s=0.0,
            latency_s=wire.latency_s,
            wire_s=seconds,
            sent_bytes=0,
            stolen_s=slowdown * (wire.latency_s + seconds),
        )
        for seconds in moving_s
    ]
    forward_s = load.compute_s * FORWARD_SHARE
    update_s = 0.0 if hooks_s else testbed.kernel_s * load.kernels
    steps = StepSimulation(
        forward_s=forward_s + hooks_s,
        backward_s=load.compute_s - forward_s,
        optimizer_s=update_s,
        ready_s=[fact.ready_s for fact in facts],
        agenda=agenda,
        costs=costs,
        control_s=0.0,
        overlaps_forward=schedule.overlaps_forward,
    )
    timeline = steps.simulate(schedule.pacer(agenda))
    return timeline.period_s or forward_s + hooks_s + update_s + timeline.end_s


def _over_all_reduce(schedule: Schedule) -> Method:
    return lambda testbed, load, case: _exchange(
        testbed, load, schedule, testbed.all_reduce(case.gpus), slowdown=testbed.slowdown
    )


def _over_server(schedule: Schedule) -> Method:
    """While one gradient is summed in its node, another is pushed and pulled; the last passes one stage after another.

    So does the only one, where all gradients are one buffer.
    """

    def method(testbed: Testbed, load: Load, case: SevenMethodsCase) -> float:
        stages = testbed.server(case.gpus)
        wire = Wire(latency_s=testbed.request_s, bytes_per_s=1 / max(stages))
        return _exchange(testbed, load, schedule, wire, last_s_per_byte=sum(stages))

    return method


def _merged(testbed: Testbed, load: Load, case: SevenMethodsCase) -> float:
    alpha_s, beta = MERGED_BY[case.network][case.gpus]
    schedule = MergedByTable(believed=Wire(latency_s=alpha_s, bytes_per_s=1 / beta))
    return _over_all_reduce(schedule)(testbed, load, case)


def _bytescheduler(testbed: Testbed, load: Load, case: SevenMethodsCase) -> float:
    hooks_s = testbed.hook_s * len(load.tensors)
    wire = testbed.all_reduce(case.gpus)
    return _exchange(testbed, load, BYTESCHEDULER, wire, hooks_s=hooks_s, slowdown=testbed.slowdown)


BYTESCHEDULER = ByteScheduler(partition_bytes=BLOCK_BYTES, credit_bytes=CREDIT_BYTES)
METHODS: Mapping[str, Method] = {
    "BSP-A2A": _over_all_reduce(Sequential()),
    "WFBP-A2A": _over_all_reduce(Wfbp()),
    "MG-WFBP": _merged,
    "ByteScheduler-A2A": _bytescheduler,
    "BSP-PS": _over_server(Sequential()),
    "WFBP-PS": _over_server(Wfbp()),
    "ByteScheduler-PS": _over_server(Wfbp()),
}


def predict(testbed: Testbed, case: SevenMethodsCase) -> float:
    """Returns the predicted samples per second."""
    step_s = METHODS[case.method](testbed, load(case.model), case)
    return case.batch_per_gpu * case.gpus / step_s


def table() -> Table:
    """Fits each network on one model at 4 and 8 GPUs; predicts the other sizes and the other model."""
    points, constants = _held_to(list(cases()), [])
    return Table(
        name="seven methods",
        points=points,
        better="high",
        target={"mape": 0.06, "spearman": 0.9, "regret": 0.02},
        note=f"Constants per network fitted on {FITTED_MODEL} at 4 and 8 GPUs; samples per second.",
        constants=constants,
    )


def more_table() -> Table:
    """Predicts what the survey measured beside: a larger model, and TCP on the fast network.

    The larger model's batch of 8 is short beside its exchange, so that on these networks four nodes are no faster
    than one GPU; no constant sees it. Its BSP-PS and WFBP-PS over IP over InfiniBand have the figures of the 10 Gb/s
    line to within 2 % (docs/planner.md says which rows are off, and why).
    """
    points, constants = _held_to(list(cases(MORE)), list(cases()))
    return Table(
        name="seven methods, more",
        points=points,
        better="high",
        note=f"BERT-Large, and IP over InfiniBand; constants fitted on {FITTED_MODEL} as above; samples per second.",
        constants=constants,
    )


def _held_to(
    measured: Sequence[SevenMethodsCase], others: Sequence[SevenMethodsCase]
) -> tuple[tuple[Point, ...], dict[str, float]]:
    """Returns the points of what was measured, and the constants; also fitted on those of others on these networks."""
    points = []
    constants: dict[str, float] = {}
    for network in dict.fromkeys(case.network for case in measured):
        fitted = [
            (case, case.samples_per_s)
            for case in (*measured, *others)
            if case.network == network and case.is_fitted
        ]
        testbed = fit(Testbed, priors(network), predict, fitted)
        deviation = deviation_of(
            ((predict(testbed, case), value) for case, value in fitted), len(priors(network))
        )
        constants |= {f"{network}: {name}": value for name, value in as_numbers(testbed).items()}
        points += [
            Point(
                name=f"{case.model}, {case.network}, {case.method}, {case.gpus} GPUs",
                group=f"{case.model}, {case.network}, {case.gpus} GPUs",
                measured=case.samples_per_s,
                predicted=predicted,
                held_out=not case.is_fitted,
                stated=interval(predicted, deviation),
            )
            for case in measured
            if case.network == network and (predicted := predict(testbed, case))
        ]
    return tuple(points), constants


def cases(file: str = SURVEY) -> Iterator[SevenMethodsCase]:
    """Yields what was measured on more than one GPU."""
    for row in published.read(file):
        if int(row["gpus"]) > 1:
            yield SevenMethodsCase(
                model=row["model"],
                network=row["network"],
                method=row["method"],
                gpus=int(row["gpus"]),
                batch_per_gpu=int(row["batch_per_gpu"]),
                samples_per_s=float(row["samples_per_s"]),
            )


@functools.cache
def load(model: str) -> Load:
    """Returns a model's load: measured on one GPU as a whole, and shared among layers by their operations."""
    rows = [*published.read(SURVEY), *published.read(MORE)]
    alone = next(row for row in rows if row["model"] == model and row["gpus"] == "1")
    compute_s = float(alone["batch_per_gpu"]) / float(alone["samples_per_s"])
    shape = model_shape(SHAPES[model])
    backward_s, done = compute_s * (1 - FORWARD_SHARE), 0.0
    tensors = []
    for layer in reversed(shape.layers):
        done += layer.forward_flops / shape.forward_flops
        tensors += [
            TensorFacts(num_bytes=4 * numel, ready_s=backward_s * min(1.0, done))
            for numel in reversed(layer.numels)
        ]
    return Load(compute_s=compute_s, tensors=tuple(tensors), kernels=KERNELS[model] * len(tensors))
