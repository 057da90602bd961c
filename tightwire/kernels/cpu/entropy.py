"""Floats without loss on processors; `reference` says what the calls do."""

from __future__ import annotations

from torch import Tensor

from tightwire.kernels.cpu import _entropy
from tightwire.kernels.cpu._arrays import unsigned_bits


def encode_entropy(x: Tensor, message: Tensor) -> int:
    """Writes the floats `x`, of any dtype, and returns the length of the message; `x` stays as it is."""
    return int(_entropy.encode_entropy(unsigned_bits(x), message.numpy()))


def decode_entropy(message: Tensor, out: Tensor) -> bool:
    """Writes the floats of a message to `out`; False, `out` being undefined, if it cannot be one of so many."""
    return bool(_entropy.decode_entropy(message.numpy(), unsigned_bits(out)))
