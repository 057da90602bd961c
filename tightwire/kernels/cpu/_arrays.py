"""Tensors as the numpy arrays that compiled loops take."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tightwire.kernels._keys import keys_of

_UNSIGNED: dict[int, Any] = {2: np.uint16, 4: np.uint32, 8: np.uint64}
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_MASKS = {2: np.uint16(0x7FFF), 4: np.uint32(0x7FFFFFFF), 8: np.uint64(0x7FFFFFFFFFFFFFFF)}
_FRACTION_BITS = {torch.float32: 23, torch.bfloat16: 7, torch.float16: 10, torch.float64: 52}


def unsigned_bits(x: Tensor) -> Any:
    """Returns the bits of a float or integer tensor as unsigned integers, in the same memory."""
    itemsize = x.element_size()
    return x.view(_INTEGERS[itemsize]).numpy().view(_UNSIGNED[itemsize])


def magnitude_mask(x: Tensor) -> Any:
    """Returns all bits of an element but the sign, as a scalar of the type of `unsigned_bits`."""
    return _MASKS[x.element_size()]


def eighth_of_octave(dtype: torch.dtype) -> int:
    """Returns an eighth of the distance from a magnitude to twice of it, in its bits."""
    return 1 << (_FRACTION_BITS[dtype] - 3)


def numpy_keys(seed: int) -> tuple[Any, Any]:
    """Returns the keys of a seed as uint32."""
    key, second_key = keys_of(seed)
    return np.uint32(key), np.uint32(second_key)
