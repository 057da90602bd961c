"""One training iteration of a transformer that is cut, from a handful of constants and the network's links.

A stage takes, for each micro-batch, its floating-point operations (Narayanan et al. 2021, arXiv:2104.04473, eq. 3), its
passes over activations (Korthikanti et al. 2022, arXiv:2205.05198, eq. 2), or the time to launch its kernels if that is
longer, and what tensor, context and expert parallelism exchange. The pipeline fills and drains once. Then gradients
are averaged where nothing hides it, and the optimizer steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

from tightwire.parallel.layout import Layout, layers_of_stage, require_legal
from tightwire.parallel.memory import GRADIENT_BYTES, WEIGHT_BYTES, layer_bytes, parameters_of_rank
from tightwire.parallel.network import Network, RankGroup, Tier, Tiers
from tightwire.parallel.transformer import HALF_BYTES, Transformer
from tightwire.profile.devices import DeviceFacts

# Of the peaks in data sheets, what Megatron-LM reached on A100s: the constants below, fitted on its iteration times.
REACHED_FLOPS = 0.705
# H100s reach less of theirs: their power limit holds large products to about 600 Tflop/s.
REACHED_FLOPS_OF = {"h100": 0.61, "h200": 0.61}
REACHED_MEMORY = 0.59
# Backward is twice forward, by inputs and by weights.
BACKWARD_SHARE = 2 / 3
ALL_REDUCES = (
    2  # of activations, per layer, micro-batch and pass: after attention, and after the feed-forward part
)
# An expert's load from one micro-batch to the next: standard deviation over mean, where a router is balanced.
EXPERT_SPREAD = 0.3


@dataclass(frozen=True, kw_only=True)
class Accelerators:
    """Nodes of equal devices, as eight constants that measurements are fitted by.

    Attributes:
        flops_per_s: floating-point operations per second in large products.
        memory_bytes_per_s: passes over activations.
        launch_s: the least that a layer takes for one micro-batch, forward, again and backward together.
        inside_bytes_per_s: bus bandwidth of an all-reduce inside a node.
        across_bytes_per_s: of one device's network line.
        inside_latency_s: of an all-reduce inside a node.
        across_latency_s: what crossing nodes adds to it.
        optimizer_s_per_parameter: of a device's own parameters.
        peak_flops_per_s: what utilisation is a share of.
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
    peak_flops_per_s: float = 3.12e14
    devices_per_node: int = 8

    @classmethod
    def of(cls, device: DeviceFacts) -> Accelerators:
        """Returns the constants of a device by its data sheet, of which it reaches what an A100 was seen to reach."""
        return cls(
            flops_per_s=REACHED_FLOPS_OF.get(device.name, REACHED_FLOPS) * device.flops_per_s,
            memory_bytes_per_s=REACHED_MEMORY * device.memory_bytes_per_s,
            launch_s=5e-3 * 2.039e12 / device.memory_bytes_per_s,
            optimizer_s_per_parameter=4e-11 * 2.039e12 / device.memory_bytes_per_s,
            peak_flops_per_s=device.flops_per_s,
        )

    @cached_property
    def network(self) -> Tiers:
        """Nodes whose devices all have a line of their own, joined without blocking."""
        n = self.devices_per_node
        return Tiers(
            (
                Tier(
                    name="node",
                    workers=n,
                    bytes_per_s=self.inside_bytes_per_s,
                    latency_s=self.inside_latency_s,
                ),
                Tier(
                    name="cluster",
                    workers=1 << 40,
                    bytes_per_s=self.across_bytes_per_s * n,
                    latency_s=self.across_latency_s,
                ),
            )
        )


@dataclass(frozen=True, kw_only=True)
class Iteration:
    """What is predicted of one iteration, in seconds.

    Attributes:
        compute_s: of all micro-batches through one stage, experts balanced.
        tensor_s: all-reduces of activations, as many times.
        context_s: what sequences in parts exchange and attention does not hide.
        expert_s: all-to-alls of tokens, and waiting for the expert with most of them.
        bubble_s: idle while the pipeline fills and drains.
        pipeline_s: activations between stages.
        data_s: averaging gradients and gathering parameters, where no compute hides it.
        optimizer_s: the optimizer's step.
        data_wire_s: averaging gradients and gathering parameters, hidden or not; not part of the sum.
        imbalance_s: by how much the slowest experts spread, one standard deviation; not part of the sum.
    """

    compute_s: float
    tensor_s: float = 0.0
    context_s: float = 0.0
    expert_s: float = 0.0
    bubble_s: float = 0.0
    pipeline_s: float = 0.0
    data_s: float = 0.0
    optimizer_s: float = 0.0
    data_wire_s: float = 0.0
    imbalance_s: float = 0.0

    @property
    def parts(self) -> dict[str, float]:
        """The parts of the sum, by name."""
        names = ("compute", "tensor", "context", "expert", "bubble", "pipeline", "data", "optimizer")
        return {name: float(vars(self)[f"{name}_s"]) for name in names}

    @property
    def seconds(self) -> float:
        """The whole."""
        return sum(self.parts.values())


@dataclass(frozen=True, kw_only=True)
class TrainingCost:
    """How a transformer is trained, apart from its layout.

    Attributes:
        batch: sequences per iteration, over all workers.
        fused: whether attention is fused: scores are never stored, and those above the diagonal never computed.
        overlaps: whether averaging gradients and gathering parameters goes on beside compute.
        sums_whole: whether shares of the batch add up whole gradients and average them once an iteration (FSDP2's
            `set_requires_gradient_sync`), in place of after each micro-batch; for `zero2` and `zero3`. Memory for whole
            gradients is then needed, which no memory of a layout counts.
    """

    batch: int
    fused: bool = True
    overlaps: bool = True
    sums_whole: bool = False


def predict_iteration(
    model: Transformer,
    how: Layout,
    training: TrainingCost,
    devices: Accelerators,
    network: Network | None = None,
) -> Iteration:
    """Predicts one iteration of training.

    Args:
        model: what is trained.
        how: it is cut.
        training: the batch, and what kernels do.
        devices: that train it.
        network: that joins them; by default the one of the devices' constants.

    Raises:
        PlanError: a cut that leaves a rest: of layers, of heads, of experts, or of the batch.

    >>> gpt = Transformer(layers=30, hidden=3072, heads=32, seq_len=2048)
    >>> old = TrainingCost(batch=512, fused=False, overlaps=False)
    >>> round(predict_iteration(gpt, Layout(data=64, micro_batch=8), old, Accelerators()).seconds, 1)
    3.3
    """
    micro_batches = require_legal(model, how, training.batch)
    return LayerCut(model, how, training, devices, network or devices.network).iteration(micro_batches)


@dataclass(frozen=True)
class LayerCut:
    """A transformer cut over devices: what each of its parts takes per micro-batch."""

    model: Transformer
    how: Layout
    training: TrainingCost
    devices: Accelerators
    network: Network

    def iteration(self, micro_batches: int) -> Iteration:
        """Returns one iteration of so many micro-batches."""
        how, layers = self.how, layers_of_stage(self.model, self.how)
        layer_s = self.layer_s
        tensor_s, context_s = self._tensor_s(), self._context_s()
        swap_s, wait_s, spread_s = self._expert_s()
        hops_s = self._hop_s() * how.chunks
        busy_s = layers * (layer_s + tensor_s + context_s + swap_s + wait_s)
        stage_s = busy_s + hops_s
        wire_s, data_s = self._data_s(micro_batches, busy_s)
        shared, experts = parameters_of_rank(self.model, how)
        own = (shared + experts) / how.shards
        return Iteration(
            compute_s=micro_batches * (layers * layer_s + self._logits_s()),
            tensor_s=micro_batches * layers * tensor_s,
            context_s=micro_batches * layers * context_s,
            expert_s=micro_batches * layers * (swap_s + wait_s),
            bubble_s=(how.pipeline - 1) * stage_s / how.chunks * self._bubble_share,
            pipeline_s=micro_batches * hops_s,
            data_s=data_s,
            optimizer_s=own * self.devices.optimizer_s_per_parameter,
            data_wire_s=wire_s,
            imbalance_s=micro_batches * layers * spread_s,
        )

    @cached_property
    def groups(self) -> dict[str, RankGroup]:
        """The ranks that talk, by dimension, placed from the inside out."""
        how = self.how
        inner = how.tensor * how.context
        data = inner * (how.pipeline if how.outermost == "data" else 1)
        pipeline = inner * (how.data if how.outermost == "pipeline" else 1)
        within = how.tensor if how.expert <= how.context or how.outermost == "pipeline" else data
        return {
            "tensor": RankGroup(how.tensor),
            "context": RankGroup(how.context, how.tensor),
            "data": RankGroup(how.data, data),
            "pipeline": RankGroup(how.pipeline, pipeline),
            "expert": RankGroup(how.expert, within),
        }

    @property
    def passes(self) -> int:
        """Forward, twice as much backward, and forward again."""
        return 4 if self.how.recompute == "full" else 3

    @property
    def _bubble_share(self) -> float:
        """Of a stage's time per micro-batch: ZB-H1 leaves forward and backward by inputs less that by weights."""
        return 1 / 3 if self.how.schedule == "zero-bubble" else 1.0

    @cached_property
    def core_s(self) -> float:
        """One forward pass through one layer's attention core."""
        how = self.how
        flops = self.model.core_flops(self.training.fused) * how.micro_batch / how.context / how.tensor
        return flops / self.devices.flops_per_s

    @cached_property
    def layer_s(self) -> float:
        """A layer's compute for one micro-batch, all passes, experts balanced."""
        how, d = self.how, self.devices
        products_s = self.model.product_flops() * how.micro_batch / how.context / how.tensor / d.flops_per_s
        core_passes = self.passes + (how.recompute == "selective" and not self.training.fused)
        # Counted as if all of it were cut: measured iteration times are nearer to that (9.0 % held out against 9.6 %).
        touched = layer_bytes(self.model, replace(how, sequence=True), "none", self.training.fused)
        took_s = (
            self.passes * products_s
            + core_passes * self.core_s
            + self.passes * touched / d.memory_bytes_per_s
        )
        return max(took_s, d.launch_s * self.passes / 4)

    def _logits_s(self) -> float:
        how, model = self.how, self.model
        tokens = how.micro_batch * model.seq_len / how.context
        return 3 * 2 * tokens * model.hidden * model.vocabulary / how.tensor / self.devices.flops_per_s

    @property
    def _activations(self) -> float:
        """Bytes of one micro-batch between two layers, on all tensor shards together."""
        return HALF_BYTES * self.how.micro_batch * self.model.seq_len / self.how.context * self.model.hidden

    def _tensor_s(self) -> float:
        if self.how.tensor == 1:
            return 0.0
        # With the sequence shared out, a reduce-scatter and an all-gather stand for each all-reduce: as many bytes.
        times = ALL_REDUCES * (self.passes - 1)  # backward by weights needs none
        return times * self.network.all_reduce_s(self._activations, self.groups["tensor"])

    def _context_s(self) -> float:
        how, model = self.how, self.model
        if how.context == 1:
            return 0.0
        tokens = how.micro_batch * model.seq_len / how.context / how.tensor
        group = self.groups["context"]
        if how.context_by == "ulysses":
            moved = HALF_BYTES * tokens * (2 * model.attention_width + 2 * model.kv_width)
            return (self.passes - 1) * self.network.all_to_all_s(moved, group)
        hop_s = self.network.hop_s(HALF_BYTES * tokens * 2 * model.kv_width, group)
        # Forward keys and values go round; backward they do so again, and their gradients beside them.
        rounds = self.passes if how.recompute == "full" else 3
        hidden_s = self.core_s / how.context * rounds
        return max(rounds * (how.context - 1) * hop_s - hidden_s * (how.context - 1), rounds * hop_s)

    def _expert_s(self) -> tuple[float, float, float]:
        """Returns all-to-alls, waiting for the fullest expert, and the spread of that, per mean layer."""
        how, model = self.how, self.model
        if not model.experts:
            return 0.0, 0.0, 0.0
        tokens = how.micro_batch * model.seq_len / how.context / (how.tensor if how.sequence else 1)
        moved = HALF_BYTES * tokens * model.experts_per_token * model.hidden
        share = model.expert_layers / model.layers
        swaps = 2 * (self.passes - 1)  # there and back, in each pass that moves tokens
        swap_s = swaps * share * self.network.all_to_all_s(moved, self.groups["expert"])
        routed = model.active_of_layer - model.shared_of_layer
        expert_s = self.layer_s * routed / model.active_of_layer
        spread = EXPERT_SPREAD * math.sqrt(how.expert / model.experts) if how.expert > 1 else 0.0
        # The mean of the largest of e loads that are normal: σ √(2 ln e) above theirs.
        return swap_s, expert_s * spread * math.sqrt(2 * math.log(how.expert)), expert_s * spread

    def _hop_s(self) -> float:
        """Returns what it takes to hand activations on and to get their gradients back."""
        activations = self._activations / self.how.tensor
        return 2 * self.network.hop_s(activations, self.groups["pipeline"])

    def _data_s(self, micro_batches: int, stage_s: float) -> tuple[float, float]:
        """Returns the time on the wire, and how much of it compute does not hide."""
        how = self.how
        shared, experts = parameters_of_rank(self.model, how)
        once_s, each_s = self._averaging_s(shared, 1)
        if experts:
            more = self._averaging_s(experts, how.expert)
            once_s, each_s = once_s + more[0], each_s + more[1]
        wire_s = once_s + micro_batches * each_s
        if not self.training.overlaps:
            return wire_s, wire_s
        layers = layers_of_stage(self.model, how)
        last_s = max(once_s - BACKWARD_SHARE * stage_s, once_s / layers)
        each = max(each_s - stage_s, each_s / layers) if each_s else 0.0
        return wire_s, last_s + micro_batches * each

    def _averaging_s(self, parameters: float, over: int) -> tuple[float, float]:
        """Returns what is exchanged once per iteration, and for each micro-batch.

        Args:
            parameters: of a rank, before state is spread.
            over: how many of the ranks of the data and context dimensions hold others' parameters: experts.
        """
        how = self.how
        context = max(1, how.context // over)
        data = how.data // max(1, over // how.context)
        near = min(how.shard_group or data, data)
        far = data // near
        stride = self.groups["data"].stride * (how.data // data)
        inner, outer = RankGroup(near, stride), RankGroup(far, stride * near)
        sums, values = GRADIENT_BYTES * parameters, WEIGHT_BYTES * parameters
        net = self.network
        around = RankGroup(context, how.tensor)
        if how.shard == "none":
            everyone = RankGroup(data, stride)
            return 2 * net.scatter_s(sums, around) + net.all_reduce_s(sums / context, everyone), 0.0

        def spread_s(num_bytes: float) -> float:
            return net.scatter_s(num_bytes, around) + net.scatter_s(num_bytes / context, inner)

        across_s = net.all_reduce_s(sums / context / near, outer)
        once_s, each_s = (spread_s(sums), 0.0) if self.training.sums_whole else (0.0, spread_s(sums))
        if how.shard == "zero3":
            return across_s + once_s, each_s + 2 * spread_s(values)
        if how.shard == "zero2":
            return across_s + spread_s(values) + once_s, each_s
        return across_s + spread_s(values) + spread_s(sums), 0.0
