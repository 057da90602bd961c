"""Votes on CUDA; `reference` says what the calls do."""

from __future__ import annotations

from torch import Tensor

from tightwire.kernels.reference import votes as reference
from tightwire.kernels.triton import _parts as parts
from tightwire.kernels.triton import _votes


def encode_votes(x: Tensor, message: Tensor, block: int, seed: int) -> None:
    """Writes the signs of float32 `x` as votes, random where it is zero; `x` stays as it is."""
    if block > parts.LARGEST_BLOCK:
        return reference.encode_votes(x, message, block, seed)
    programs, shape = parts.bit_rows(x.numel(), block)
    parts.launch(_votes.encode_votes, programs, x, message, x.numel(), *parts.keys(seed), **shape)


def count_votes(messages: Tensor, outcome: Tensor, numel: int, block: int, seed: int) -> None:
    """Writes the message of the majority of (voters, bytes) messages of `numel` elements, random where they tie."""
    if block > parts.LARGEST_BLOCK:
        return reference.count_votes(messages, outcome, numel, block, seed)
    programs, shape = parts.bit_rows(numel, block)
    sizes = numel, messages.stride(0), messages.shape[0]
    parts.launch(_votes.count_votes, programs, messages, outcome, *sizes, *parts.keys(seed), **shape)


def decode_votes(message: Tensor, out: Tensor, block: int, add: bool) -> None:
    """Writes or adds the signs of a message of votes to float32 `out`."""
    if block > parts.LARGEST_BLOCK:
        return reference.decode_votes(message, out, block, add)
    programs, shape = parts.bit_rows(out.numel(), block)
    parts.launch(_votes.decode_votes, programs, out, message, out.numel(), **shape, ADD=add)
