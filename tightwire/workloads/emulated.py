"""Workloads whose compute is emulated: a model's tensors as they are, and timed waits that release the processor.

So two cores can stand for many accelerators. Results made so say so.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tightwire.profile.models import model_shape

if TYPE_CHECKING:
    from torch import nn

ITEM_BYTES = 4
DTYPES = {"float32": ITEM_BYTES, "bfloat16": 2}
FORWARD_SHARE = 1 / 3


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a step computes and sends.

    Attributes:
        name: as in the table.
        layers: the sizes in elements of each layer's tensors, in the order of the forward pass.
        shares: of compute, by layer; they add up to 1. Empty where nobody knows them.
        compute_s: of a step: a third forward, two thirds backward.
        dtype: of parameters and gradients, a name in `DTYPES`.
    """

    name: str
    layers: tuple[tuple[int, ...], ...]
    shares: tuple[float, ...]
    compute_s: float
    dtype: str = "float32"

    @property
    def item_bytes(self) -> int:
        """Of one element."""
        return DTYPES[self.dtype]

    @property
    def num_bytes(self) -> int:
        """Of all gradients."""
        return self.item_bytes * sum(map(sum, self.layers))


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
