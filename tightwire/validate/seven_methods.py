"""Seven lossless methods against published throughput: fitted on one model at 4 and 8 GPUs, the rest predicted.

A method is a schedule of ours over all-reduce or over a parameter server; the simulator that serves `tightwire plan`
runs it. What is fitted, once per network, are constants of hardware and framework; what was measured on one GPU is
taken as given. Each network's constants come from BERT-Base alone, where exchanges show.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from tightwire.profile.models import model_shape
from tightwire.schedule import (
    BucketFacts,
    ByteScheduler,
    MgWfbp,
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

MODELS = {"ResNet-50": "resnet50", "BERT-Base": "bert-base"}
FITTED_MODEL, FITTED_GPUS = "BERT-Base", (4, 8)
GPUS_PER_NODE = 4
FORWARD_SHARE = 1 / 3
BLOCK_BYTES, CREDIT_BYTES = 4 * 10**6, 16 * 10**6  # as the survey ran ByteScheduler and BytePS


@dataclass(frozen=True, kw_only=True)
class Testbed:
    """Nodes of four GPUs and the frameworks on them.

    Attributes:
        inside_bytes_per_s: bus bandwidth of an all-reduce inside a node.
        across_bytes_per_s: of an all-reduce over the network.
        call_s: of a collective call.
        hop_s: of each of a ring's 2(n − 1) steps between nodes.
        local_bytes_per_s: what a node sums for its parameter server.
        server_bytes_per_s: of push and pull, one after the other.
        request_s: of a push and pull.
        hook_s: that ByteScheduler's hooks hold each layer's forward over all-reduce.
        slice_s: that ByteScheduler adds to a slice over the server.
        gradient_s_per_byte: of work on gradients beside their exchange, which nothing hides.
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
    slice_s: float
    gradient_s_per_byte: float
    slowdown: float

    def all_reduce(self, gpus: int) -> Wire:
        """Returns what averaging a buffer costs over all-reduce."""
        if gpus <= GPUS_PER_NODE:
            return Wire(latency_s=self.call_s, bytes_per_s=self.inside_bytes_per_s / (2 * (gpus - 1) / gpus))
        latency_s = self.call_s + 2 * (gpus - 1) * self.hop_s
        return Wire(latency_s=latency_s, bytes_per_s=self.across_bytes_per_s / (2 * (gpus - 1) / gpus))

    def server(self, gpus: int) -> Wire:
        """Returns what averaging a buffer costs over servers, one host per node."""
        s_per_byte = 1 / self.local_bytes_per_s
        if gpus > GPUS_PER_NODE:
            s_per_byte += 1 / self.server_bytes_per_s
        return Wire(latency_s=self.request_s, bytes_per_s=1 / s_per_byte)


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
        "slice_s": Prior(value=5e-5, spread=0.7),
        "gradient_s_per_byte": Prior(value=1e-10, spread=1.0),
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
    """A model's compute on one GPU, and its tensors in the order of backward."""

    compute_s: float
    tensors: tuple[TensorFacts, ...]
    modules: int

    @property
    def num_bytes(self) -> int:
        """Of all gradients."""
        return sum(tensor.num_bytes for tensor in self.tensors)


Method = Callable[[Testbed, Load, int], float]


def _exchange(
    testbed: Testbed,
    load: Load,
    schedule: Schedule,
    wire: Wire,
    *,
    hooks_s: float = 0.0,
    slowdown: float = 0.0,
) -> float:
    """Returns the step time under a schedule."""
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
    extra_s = testbed.gradient_s_per_byte * load.num_bytes
    steps = StepSimulation(
        forward_s=forward_s + hooks_s,
        backward_s=load.compute_s - forward_s,
        optimizer_s=extra_s,
        ready_s=[fact.ready_s for fact in facts],
        agenda=agenda,
        costs=costs,
        control_s=0.0,
        overlaps_forward=schedule.overlaps_forward,
    )
    timeline = steps.simulate(schedule.pacer(agenda))
    return timeline.period_s or forward_s + hooks_s + extra_s + timeline.end_s


def _over_all_reduce(schedule: Schedule) -> Method:
    return lambda testbed, load, gpus: _exchange(
        testbed, load, schedule, testbed.all_reduce(gpus), slowdown=testbed.slowdown
    )


def _over_server(schedule: Schedule) -> Method:
    return lambda testbed, load, gpus: _exchange(testbed, load, schedule, testbed.server(gpus))


def _bytescheduler_over_all_reduce(testbed: Testbed, load: Load, gpus: int) -> float:
    hooks_s = testbed.hook_s * load.modules
    wire, slowdown = testbed.all_reduce(gpus), testbed.slowdown
    return _exchange(testbed, load, BYTESCHEDULER, wire, hooks_s=hooks_s, slowdown=slowdown)


def _bytescheduler_over_server(testbed: Testbed, load: Load, gpus: int) -> float:
    wire = testbed.server(gpus)
    slower = Wire(latency_s=wire.latency_s + testbed.slice_s, bytes_per_s=wire.bytes_per_s)
    return _exchange(testbed, load, BYTESCHEDULER, slower)


BYTESCHEDULER = ByteScheduler(partition_bytes=BLOCK_BYTES, credit_bytes=CREDIT_BYTES)
METHODS: Mapping[str, Method] = {
    "BSP-A2A": _over_all_reduce(Sequential()),
    "WFBP-A2A": _over_all_reduce(Wfbp()),
    "MG-WFBP": _over_all_reduce(MgWfbp()),
    "ByteScheduler-A2A": _bytescheduler_over_all_reduce,
    "BSP-PS": _over_server(Sequential()),
    "WFBP-PS": _over_server(Wfbp()),
    "ByteScheduler-PS": _bytescheduler_over_server,
}


def predict(testbed: Testbed, case: SevenMethodsCase) -> float:
    """Returns the predicted samples per second."""
    step_s = METHODS[case.method](testbed, load(case.model), case.gpus)
    return case.batch_per_gpu * case.gpus / step_s


def table() -> Table:
    """Fits each network on one model at 4 and 8 GPUs; predicts the other sizes and the other model."""
    points = []
    constants: dict[str, float] = {}
    for network in dict.fromkeys(case.network for case in cases()):
        of_network = [case for case in cases() if case.network == network]
        measured = [(case, case.samples_per_s) for case in of_network if case.is_fitted]
        testbed = fit(Testbed, priors(network), predict, measured)
        deviation = deviation_of(
            ((predict(testbed, case), value) for case, value in measured), len(priors(network))
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
            for case in of_network
            if (predicted := predict(testbed, case))
        ]
    return Table(
        name="seven methods",
        points=tuple(points),
        better="high",
        target={"mape": 0.06, "spearman": 0.9, "regret": 0.02},
        note=f"Constants per network fitted on {FITTED_MODEL} at 4 and 8 GPUs; samples per second.",
        constants=constants,
    )


def cases() -> Iterator[SevenMethodsCase]:
    """Yields what was measured on more than one GPU."""
    for row in published.read("seven_methods_throughput.csv"):
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
    rows = published.read("seven_methods_throughput.csv")
    alone = next(row for row in rows if row["model"] == model and row["gpus"] == "1")
    compute_s = float(alone["batch_per_gpu"]) / float(alone["samples_per_s"])
    shape = model_shape(MODELS[model])
    backward_s, done = compute_s * (1 - FORWARD_SHARE), 0.0
    tensors = []
    for layer in reversed(shape.layers):
        done += layer.forward_flops / shape.forward_flops
        tensors += [
            TensorFacts(num_bytes=4 * numel, ready_s=backward_s * min(1.0, done))
            for numel in reversed(layer.numels)
        ]
    modules = sum(1 for layer in shape.layers if layer.shapes)
    return Load(compute_s=compute_s, tensors=tuple(tensors), modules=modules)
