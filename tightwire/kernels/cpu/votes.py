"""Votes on processors. `reference` says what the calls do."""

from __future__ import annotations

from torch import Tensor

from tightwire.kernels.cpu import _votes
from tightwire.kernels.cpu._arrays import numpy_keys


def encode_votes(x: Tensor, message: Tensor, block: int, seed: int) -> None:
    """Writes the signs of float32 `x` as votes, random where it is zero; `x` stays as it is."""
    _votes.encode_votes(x.numpy(), message.numpy(), block, numpy_keys(seed))


def count_votes(messages: Tensor, outcome: Tensor, numel: int, block: int, seed: int) -> None:
    """Writes the message of the majority of (voters, bytes) messages of `numel` elements, random where they tie."""
    _votes.count_votes(messages.numpy(), outcome.numpy(), numel, block, numpy_keys(seed))


def decode_votes(message: Tensor, out: Tensor, block: int, add: bool) -> None:
    """Writes or adds the signs of a message of votes to float32 `out`."""
    _votes.decode_votes(message.numpy(), out.numpy(), block, add)
