"""The hot loops of compression, one implementation per kind of device, all with the same functions.

`reference` is plain torch on any device and defines what is correct; `cpu` is numba at memory speed, `gpu` is Triton
for CUDA. All write the same message, bit for bit, from the same finite input and seed.

Every function takes flat contiguous tensors and message memory that the caller owns, leaves in `x` what the
message does not carry, and releases the GIL while it works:

    narrow, widen            casts to half-precision formats, saturating
    quantise, dequantise     a grid per block: int8, int4, int2, QSGD, NUQSGD, TernGrad
    sign, unsign             one bit each, and the mean magnitudes of a block
    cast, tally, uncast      votes: one bit each, and what the majority of several is
    split_planes, join_planes    bytes by their place in an element
    power, unpower           powers of two, at random
    eight, uneight           8-bit floats, scaled per block
    select, scatter          the k largest magnitudes, by index
    above, put               the magnitudes that reach a threshold, at most k, by index
    select_blocks, put_blocks    the largest magnitudes of every block, by index within it
    mark, unmark             some elements, each as a position and a sign; and `mean_magnitude` of some
    lean                     the k largest magnitudes of the sign that has the larger ones, by index
    draw                     at most k elements at random, larger ones more often; `put` reads them
    places                   random ones, the same for all who know the seed
    transform, untransform   chunks as cosines, and waves from a few of them
    strongest                the strongest waves of every chunk; `untransform` reads them
    sketch, unsketch         a count-sketch, and the estimates it gives
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import threading
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import ModuleType

    from torch import Tensor

_local = threading.local()
_PACKAGES = {"cpu": "cpu", "cuda": "triton"}


def of(tensor: Tensor) -> ModuleType:
    """Returns the kernels for the device that `tensor` is on; plain torch where there are none of its own."""
    return _module(_PACKAGES.get(tensor.device.type, "reference"))


@functools.cache
def _module(name: str) -> ModuleType:
    if name == "triton" and importlib.util.find_spec("triton") is None:
        warnings.warn(
            "tensors are on CUDA and Triton is not installed: what compresses them runs as plain torch, one "
            "operation at a time. Install it: pip install tightwire[gpu].",
            RuntimeWarning,
            stacklevel=3,
        )
        name = "reference"
    return importlib.import_module(f"tightwire.kernels.{name}")


def scratch(use: str, numel: int, dtype: Any, device: Any = "cpu") -> Tensor:
    """Returns this thread's scratch memory for one use: (numel,) of `dtype`, its content undefined.

    It grows to the largest size asked for and is kept, so that a training step allocates nothing. The same
    memory is returned for the same `use`: its owner must be done with it before asking again.
    """
    import torch

    pools: dict[Any, Tensor] = _local.__dict__.setdefault("pools", {})
    key = (use, dtype, str(device))
    pool = pools.get(key)
    if pool is None or pool.numel() < numel:
        pool = pools[key] = torch.empty(numel, dtype=dtype, device=device)
    return pool[:numel]
