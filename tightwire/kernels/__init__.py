"""The hot loops of compression, one implementation per kind of device, all with the same functions.

`reference` is plain torch on any device and defines what is correct; `cpu` is numba at memory speed, `triton` is for
CUDA. All write the same message, bit for bit, from the same finite input and seed. Each has the same files, one per
theme:

| file | functions | what they send |
|---|---|---|
| `halves` | `encode_half`, `decode_half` | half-precision formats, saturating |
| `uniform` | `quantise`, `dequantise` | a grid per block: int8, int4, int2, QSGD, NUQSGD, TernGrad |
| `fixed` | `largest_bits`, `encode_fixed`, `decode_fixed` | integers of a step that all workers share |
| `floats` | `encode_powers`, `decode_powers` | powers of two, at random |
| | `encode_fp8`, `decode_fp8` | 8-bit floats, scaled per block |
| `hadamard` | `rotate` | blocks rotated at random, so that elements are nearly normal |
| `signs` | `encode_signs`, `decode_signs` | one bit each, and the mean magnitudes of a block |
| `votes` | `encode_votes`, `count_votes`, `decode_votes` | one bit each, and what the majority of several is |
| `planes` | `split_planes`, `join_planes` | bytes by their place in an element |
| `sparse` | `select_largest`, `scatter_largest` | the k largest magnitudes, by index |
| | `select_above`, `scatter_sparse` | the magnitudes that reach a threshold, at most k, by index |
| `blocks` | `select_blocks`, `scatter_blocks` | the largest magnitudes of every block, by index within it |
| `sparse_signs` | `encode_sparse_signs`, `decode_sparse_signs` | some elements, each as an index and a sign |
| | `select_dominant_sign`, `mean_magnitude` | which elements: the largest of the sign that has larger ones |
| `sampling` | `sample_by_magnitude` | elements at random, larger ones more often; `scatter_sparse` reads them |
| | `shared_indices` | random indices, the same for all who know the seed |
| `cosines` | `encode_cosines`, `decode_cosines` | the strongest cosine waves of every chunk |
| `entropy` | `encode_entropy`, `decode_entropy` | floats without loss: exponents in fewer bits |
| `sketches` | `add_to_sketch`, `estimate_from_sketch` | a count-sketch, and the estimates it gives |

`scatter_*` and `decode_cosines` return False, with nothing done, where an index is wrong; on a device, to know that the
host would have to wait: they return True there, and set the thread's flag (`flag_of`).

Every function takes flat contiguous tensors and message memory that the caller owns, leaves in `x` what the
message does not carry, and releases the GIL while it works.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import sys
import warnings
from typing import TYPE_CHECKING, Any

from tightwire.kernels._doubts import flag_if_any, flag_of
from tightwire.kernels._scratch import per_thread, scratch_tensor

if TYPE_CHECKING:
    from types import ModuleType

    from torch import Tensor

__all__ = ["compiled", "flag_if_any", "flag_of", "install", "of", "per_thread", "scratch_tensor"]

_PACKAGES = {"cpu": "cpu", "cuda": "triton"}
_INSTALLED: dict[str, Any] = {}
# As pyproject.toml asks for.
OLDEST_TRITON = (3, 2)


def install(kind: str, functions: Any) -> None:
    """Has tensors on devices of a kind use other functions, as attributes of one object; for devices made elsewhere."""
    _INSTALLED[kind] = functions


def of(tensor: Tensor) -> Any:
    """Returns the kernels for the device that `tensor` is on; plain torch where there are none of its own."""
    kind = tensor.device.type
    if kind in _PACKAGES:
        return _module(_PACKAGES[kind])
    return _INSTALLED[kind] if kind in _INSTALLED else _module("reference")


def compiled() -> int:
    """Returns how many kernels of the host this process did not find on disk: it has compiled them, or does so now."""
    # Copies, for other threads may import meanwhile: a list of items is made one by one.
    modules = [module for name, module in sys.modules.copy().items() if name.startswith(f"{__name__}.")]
    counts = (getattr(kernel, "stats", None) for module in modules for kernel in vars(module).copy().values())
    return sum(sum(count.cache_misses.values()) for count in counts if count is not None)


@functools.cache
def _module(name: str) -> ModuleType:
    if name == "triton" and (lacking := _triton_lacks()):
        warnings.warn(
            f"tensors are on CUDA and {lacking}: what compresses them runs as plain torch, one operation at a time. "
            "Install it: pip install tightwire[gpu].",
            RuntimeWarning,
            stacklevel=3,
        )
        name = "reference"
    return importlib.import_module(f"tightwire.kernels.{name}")


def _triton_lacks() -> str:
    """Returns why Triton cannot be used; empty where it can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    found = importlib.metadata.version("triton")
    major, minor = map(int, (*found.split("."), "0")[:2])
    oldest = ".".join(map(str, OLDEST_TRITON))
    return "" if (major, minor) >= OLDEST_TRITON else f"Triton {found} is older than {oldest}"
