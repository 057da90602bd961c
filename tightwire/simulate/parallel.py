"""Tensor, data and pipeline parallelism of transformers together: one training iteration from a handful of constants.

A model is cut into `pipeline` stages of equal layers, each layer into `tensor` shards, and the batch into `data` shares
of micro-batches. A stage takes, for each micro-batch, its floating-point operations (activations recomputed; Narayanan
et al. 2021, arXiv:2104.04473, eq. 3), its passes over activations (Korthikanti et al. 2022, arXiv:2205.05198 eq. 2), or
the time to launch its kernels if that is longer, and the all-reduces that tensor shards need. The pipeline fills and
drains once: m micro-batches take m + p − 1 stages. Then gradients are averaged, and the optimizer steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tightwire.errors import PlanError

HALF_BYTES = 2  # activations and their gradients travel in half precision
GRADIENT_BYTES = 4  # gradients are averaged in single precision
PASSES = 4  # forward, forward again, backward by inputs, backward by weights
ALL_REDUCES = 6  # per layer and micro-batch: two forward, two again, two backward


@dataclass(frozen=True, kw_only=True)
class Transformer:
    """A decoder of equal layers.

    Attributes:
        layers: how many.
        hidden: width.
        heads: of attention.
        seq_len: tokens in a sequence.
        vocabulary: rows of the embedding.
    """

    layers: int
    hidden: int
    heads: int
    seq_len: int
    vocabulary: int = 51200

    @property
    def parameters(self) -> int:
        """About how many: 12 h² a layer, and the embedding."""
        return 12 * self.layers * self.hidden**2 + self.vocabulary * self.hidden


@dataclass(frozen=True, kw_only=True)
class Parallelism:
    """How a transformer and its batch are cut.

    Attributes:
        tensor: shards of each layer.
        data: shares of the batch.
        pipeline: stages of layers.
        micro_batch: sequences that go through a stage together.
    """

    tensor: int = 1
    data: int = 1
    pipeline: int = 1
    micro_batch: int = 1

    @property
    def workers(self) -> int:
        """Devices that it takes."""
        return self.tensor * self.data * self.pipeline

    def __str__(self) -> str:
        return f"t{self.tensor}·d{self.data}·p{self.pipeline}, micro-batch {self.micro_batch}"


@dataclass(frozen=True, kw_only=True)
class Accelerators:
    """Nodes of equal devices, as eight constants that measurements are fitted by.

    Attributes:
        flops_per_s: floating-point operations per second in large products.
        memory_bytes_per_s: passes over activations.
        launch_s: the least that a layer takes for one micro-batch, all four passes together.
        inside_bytes_per_s: bus bandwidth of an all-reduce inside a node.
        across_bytes_per_s: of one device's network line.
        inside_latency_s: of an all-reduce inside a node.
        across_latency_s: what crossing nodes adds to it.
        optimizer_s_per_parameter: of a device's own parameters.
        devices_per_node: how many share a node.
    """

    flops_per_s: float = 2.2e14
    memory_bytes_per_s: float = 1.2e12
    launch_s: float = 5e-3
    inside_bytes_per_s: float = 2.29e11
    across_bytes_per_s: float = 2.1e10
    inside_latency_s: float = 8e-5
    across_latency_s: float = 1e-4
    optimizer_s_per_parameter: float = 4e-11
    devices_per_node: int = 8

    def bus_bytes_per_s(self, group: int, members_per_node: int) -> float:
        """Returns the bus bandwidth of an all-reduce: across nodes, a group has the lines of all its members there."""
        if group <= members_per_node:
            return self.inside_bytes_per_s
        return min(self.inside_bytes_per_s, self.across_bytes_per_s * members_per_node)


@dataclass(frozen=True, kw_only=True)
class Iteration:
    """What is predicted of one iteration, in seconds.

    Attributes:
        compute_s: of all micro-batches through one stage.
        tensor_s: all-reduces of activations, as many times.
        bubble_s: idle while the pipeline fills and drains.
        pipeline_s: activations between stages.
        data_s: averaging gradients.
        optimizer_s: the optimizer's step.
    """

    compute_s: float
    tensor_s: float
    bubble_s: float
    pipeline_s: float
    data_s: float
    optimizer_s: float

    @property
    def seconds(self) -> float:
        """The whole."""
        return (
            self.compute_s + self.tensor_s + self.bubble_s + self.pipeline_s + self.data_s + self.optimizer_s
        )


def predict_iteration(
    model: Transformer, how: Parallelism, global_batch: int, devices: Accelerators
) -> Iteration:
    """Predicts one iteration of training.

    Args:
        model: what is trained.
        how: it is cut.
        global_batch: sequences per iteration, over all workers.
        devices: that train it.

    Raises:
        PlanError: a cut that leaves a rest: of layers, of heads, or of the batch.

    >>> gpt = Transformer(layers=30, hidden=3072, heads=32, seq_len=2048)
    >>> round(predict_iteration(gpt, Parallelism(data=64, micro_batch=8), 512, Accelerators()).seconds, 1)
    3.4
    """
    micro_batches = _whole_cut(model, how, global_batch)
    layer_s, tensor_s = _layer_s(model, how, devices), _tensor_s(model, how, devices)
    layers = model.layers / how.pipeline
    hop_s = _hop_s(model, how, devices)
    stage_s = layers * (layer_s + tensor_s) + hop_s
    own = (12 * model.layers * model.hidden**2 / how.pipeline + model.vocabulary * model.hidden) / how.tensor
    return Iteration(
        compute_s=micro_batches * (layers * layer_s + _logits_s(model, how, devices)),
        tensor_s=micro_batches * layers * tensor_s,
        bubble_s=(how.pipeline - 1) * stage_s,
        pipeline_s=micro_batches * hop_s,
        data_s=_data_s(own, how, devices),
        optimizer_s=own * devices.optimizer_s_per_parameter,
    )


def _whole_cut(model: Transformer, how: Parallelism, global_batch: int) -> int:
    """Returns the number of micro-batches of each pipeline."""
    for what, whole, parts in (
        ("layers over pipeline stages", model.layers, how.pipeline),
        ("heads over tensor shards", model.heads, how.tensor),
        ("the global batch over data shares of micro-batches", global_batch, how.data * how.micro_batch),
    ):
        if whole % parts:
            raise PlanError(f"{how}: {whole} cannot be cut evenly by {parts} ({what}); take a divisor.")
    return global_batch // (how.data * how.micro_batch)


def _layer_s(model: Transformer, how: Parallelism, devices: Accelerators) -> float:
    """Returns a layer's compute for one micro-batch, all passes."""
    b, s, h = how.micro_batch, model.seq_len, model.hidden
    flops = PASSES * (24 * b * s * h**2 + 4 * b * s**2 * h) / how.tensor
    traffic = PASSES * b * s * (34 * h + 5 * model.heads * s) / how.tensor
    return max(flops / devices.flops_per_s + traffic / devices.memory_bytes_per_s, devices.launch_s)


def _logits_s(model: Transformer, how: Parallelism, devices: Accelerators) -> float:
    flops = PASSES * 2 * how.micro_batch * model.seq_len * model.hidden * model.vocabulary / how.tensor
    return flops / devices.flops_per_s


def _tensor_s(model: Transformer, how: Parallelism, devices: Accelerators) -> float:
    t = how.tensor
    if t == 1:
        return 0.0
    activations = HALF_BYTES * how.micro_batch * model.seq_len * model.hidden
    inside = min(t, devices.devices_per_node)
    wire_s = 2 * (t - 1) / t * activations / devices.bus_bytes_per_s(t, inside)
    crossing_s = devices.across_latency_s if t > devices.devices_per_node else 0.0
    return ALL_REDUCES * (wire_s + devices.inside_latency_s + crossing_s)


def _hop_s(model: Transformer, how: Parallelism, devices: Accelerators) -> float:
    """Returns what it takes to hand activations on and to get their gradients back."""
    if how.pipeline == 1:
        return 0.0
    activations = HALF_BYTES * how.micro_batch * model.seq_len * model.hidden / how.tensor
    return 2 * (activations / devices.across_bytes_per_s + devices.inside_latency_s)


def _data_s(own_parameters: float, how: Parallelism, devices: Accelerators) -> float:
    d = how.data
    inside = max(1, math.floor(devices.devices_per_node / how.tensor))
    return 2 * (d - 1) / d * own_parameters * GRADIENT_BYTES / devices.bus_bytes_per_s(d, min(d, inside))
