"""What a device must hold, in parts: weights, gradients, the optimizer's state, activations, buffers."""

from __future__ import annotations

from dataclasses import dataclass

from tightwire.parallel.layout import Layout, layers_of_stage
from tightwire.parallel.transformer import HALF_BYTES, Transformer

WEIGHT_BYTES = 2
GRADIENT_BYTES = 4  # summed in single precision
OPTIMIZER_BYTES = 12  # a copy of the weights and Adam's two moments, in single precision
LOGIT_BYTES = 6  # of one logit: half precision, and a copy in single precision for the loss
# What the runtime, its workspaces and its collectives take of each device; measured on A100s at 1 to 3 GB.
RUNTIME_BYTES = 2 * 10**9
PIECES_AHEAD = 2  # layers gathered at once under zero3: the one at work and the next


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes that the fullest device holds.

    Attributes:
        weights: in half precision.
        gradients: in single precision.
        optimizer: its state.
        activations: stored for backward, of all micro-batches under way, and the logits.
        buffers: gathered layers, what a layer that is computed again needs, and the runtime's own.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    buffers: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.buffers

    @property
    def parts(self) -> dict[str, int]:
        """By name, whole bytes."""
        names = ("weights", "gradients", "optimizer", "activations", "buffers")
        return {name: round(vars(self)[name]) for name in names}

    @property
    def largest(self) -> str:
        """The name of the largest part."""
        return max(self.parts, key=lambda name: self.parts[name])


def parameters_of_rank(model: Transformer, how: Layout) -> tuple[float, float]:
    """Returns the parameters of the fullest rank before state is spread: those of no expert, and those of experts."""
    layers = layers_of_stage(model, how)
    shared = (
        layers * model.shared_of_layer + model.embedding / (2 if _parts_ends(model, how) else 1)
    ) / how.tensor
    experts = layers * model.experts_of_layer / how.tensor / how.expert
    return shared, experts


def _parts_ends(model: Transformer, how: Layout) -> bool:
    """Whether the embedding and the logits are matrices of their own on different stages."""
    return how.pipeline > 1 and not model.tied


def memory_of(model: Transformer, how: Layout, micro_batches: int, *, fused: bool) -> Memory:
    """Returns what the first stage holds, which has most micro-batches under way.

    Args:
        model: that is trained.
        how: it is cut.
        micro_batches: of each pipeline.
        fused: whether attention is fused, so that its scores are never stored (Dao et al. 2022, arXiv:2205.14135).
    """
    shared, experts = parameters_of_rank(model, how)
    own = shared + experts
    # Experts are spread over ranks already: their state is shared out among the copies that are left.
    copies = max(1, how.shards // how.expert)
    spread = shared / how.shards + experts / copies
    part = {"none": own, "zero1": own, "zero2": own, "zero3": spread}[how.shard]
    gathered = own / layers_of_stage(model, how) if how.shard == "zero3" else 0.0
    layer = layer_bytes(model, how, "none", fused)
    again = 0.0 if how.recompute == "none" else layer - layer_bytes(model, how, how.recompute, fused)
    return Memory(
        weights=WEIGHT_BYTES * part,
        gradients=GRADIENT_BYTES * (spread if how.shard in ("zero2", "zero3") else own),
        optimizer=OPTIMIZER_BYTES * (own if how.shard == "none" else spread),
        activations=layer_bytes(model, how, how.recompute, fused)
        * _layers_under_way(model, how, micro_batches)
        + _ends_bytes(model, how),
        buffers=PIECES_AHEAD * gathered * (WEIGHT_BYTES + GRADIENT_BYTES / 2) + again + RUNTIME_BYTES,
    )


def layer_bytes(model: Transformer, how: Layout, recompute: str, fused: bool) -> float:
    """Returns the activations that one layer stores of one micro-batch (Korthikanti et al. 2022, table 2)."""
    tokens = how.micro_batch * model.seq_len / how.context
    t = how.tensor
    if recompute == "full":
        return tokens * HALF_BYTES * model.hidden / (t if how.sequence else 1)
    whole = model.unsharded_bytes_per_token() / (t if how.sequence else 1)
    cut = model.sharded_bytes_per_token() / t
    core = 0.0 if fused or recompute == "selective" else model.core_bytes_per_token() / t
    return tokens * (whole + cut + core)


def _layers_under_way(model: Transformer, how: Layout, micro_batches: int) -> float:
    """Returns how many layers' activations the first stage holds (Narayanan et al. 2021; interleaving stores more)."""
    layers, p = layers_of_stage(model, how), how.pipeline
    if how.chunks > 1:
        return layers * min(micro_batches, p + (p - 1) / how.chunks)
    return layers * min(micro_batches, p)


def _ends_bytes(model: Transformer, how: Layout) -> float:
    """Returns the logits, where the device has the last stage too; elsewhere the first stage is fuller without them."""
    if how.pipeline > 1:
        return 0.0
    tokens = how.micro_batch * model.seq_len / how.context
    return tokens * LOGIT_BYTES * model.vocabulary / how.tensor
