"""Votes: one bit per element, and per block whether they count."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tightwire.kernels.formats import ABSTAINED, SPOILED, VOTED
from tightwire.kernels.reference._random import random_bits
from tightwire.kernels.reference._rows import (
    block_rows,
    join_parts,
    pack_codes,
    split_parts,
    unpack_codes,
    write_or_add,
)


def encode_votes(x: Tensor, message: Tensor, block: int, seed: int) -> None:
    """Writes the signs of float32 `x` as votes, random where it is zero; `x` stays as it is."""
    parts = []
    for first, rows in block_rows(x, block):
        largest = rows.abs().amax(1)
        states = torch.where(largest > 0, VOTED, ABSTAINED)
        states = torch.where(largest.isfinite(), states, SPOILED).to(torch.uint8)
        signs = torch.where(rows == 0, _random_sign(first, rows, seed), rows.signbit().long())
        parts.append((states, pack_codes(signs.to(torch.uint8), 1)))
    join_parts(parts, message)


def _random_sign(first: int, rows: Tensor, seed: int) -> Tensor:
    return random_bits(first, rows.numel(), seed, rows.device).view(rows.shape) >> 31


def count_votes(messages: Tensor, outcome: Tensor, numel: int, block: int, seed: int) -> None:
    """Writes the message of the majority of (voters, bytes) messages of `numel` elements, random where they tie."""
    shape = torch.empty(numel, dtype=torch.uint8, device=messages.device)
    ballots = [split_parts(message, shape, block, 1, 1) for message in messages]
    parts = []
    for place, (first, rows) in enumerate(block_rows(shape, block)):
        states = torch.stack([ballot[place][1] for ballot in ballots])
        signs = torch.stack([unpack_codes(ballot[place][2], 1)[:, : rows.shape[1]] for ballot in ballots])
        counts = (states == VOTED)[:, :, None]
        lead = (signs.long() * counts).sum(0) * 2 - counts.sum(0)
        majority = torch.where(lead == 0, _random_sign(first, rows, seed), (lead > 0).long())
        parts.append((states.amax(0), pack_codes(majority.to(torch.uint8), 1)))
    join_parts(parts, outcome)


def decode_votes(message: Tensor, out: Tensor, block: int, add: bool) -> None:
    """Writes or adds the signs of a message of votes to float32 `out`."""
    sizes = torch.tensor([0.0, 1.0, math.nan], device=out.device)
    for rows, states, packed in split_parts(message, out, block, 1, 1):
        size = sizes[states.long().clamp(max=SPOILED)][:, None]
        negative = unpack_codes(packed, 1)[:, : rows.shape[1]].bool()
        write_or_add(torch.where(negative, -size, size), rows, add)
