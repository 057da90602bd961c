"""Replicas that a plan promises to keep equal: made so where it begins, compared along the way."""

from __future__ import annotations

import hashlib
import logging
import struct
from collections.abc import Iterable, Mapping
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import Parameter

from tightwire.architecture.server.messages import pack_state, unpack_state
from tightwire.errors import AttachError
from tightwire.runtime.step import Optimizers
from tightwire.transport import Transport
from tightwire.transport.blame import name_ranks

# Parameters are compared once in so many steps: reading them costs about as much as copying them.
STEPS_BETWEEN_DIGESTS: Final = 50
_PRIME: Final = 0x9E3779B97F4A7C15
_BITS: Final = 64

log = logging.getLogger("tightwire")


def make_states_equal(
    transport: Transport, optimizers: Optimizers, parameters: Mapping[str, Parameter], steps: int
) -> None:
    """Makes what optimizers remember of parameters that of the rank that made most steps, where ranks differ.

    Equal parameters and unlike momenta part with the first step.

    Args:
        transport: between all members.
        optimizers: of this rank.
        parameters: of which they remember something, by name.
        steps: that this rank made.

    Contract: every member; blocks; sends a digest, and the state only where digests differ.

    Raises:
        AttachError: an optimizer remembers what cannot be sent.
    """
    packed = _packed({name: dict(optimizers.state_of(p)) for name, p in parameters.items()})
    card = struct.pack("<qq", steps, packed.numel()) + hashlib.sha256(packed.numpy().tobytes()).digest()
    cards = transport.exchange(card)
    if len({other[16:] for other in cards}) == 1:
        return
    told = [struct.unpack("<qq", other[:16]) for other in cards]
    source = max(range(len(told)), key=lambda rank: (told[rank][0], -rank))
    state = packed if transport.rank == source else torch.empty(told[source][1], dtype=torch.uint8)
    transport.broadcast(state, source)
    if transport.rank != source:
        for name, kept in unpack_state(state).items():
            optimizers.remember(parameters[name], kept)
    if transport.rank == 0:
        unlike = [rank for rank, other in enumerate(cards) if other[16:] != cards[source][16:]]
        log.info(
            "what the optimizers of %s remembered differed from rank %d's, and was replaced by it: the plan that "
            "begins keeps replicas equal.",
            name_ranks(unlike),
            source,
        )


class ReplicaDigest:
    """What is compared in every round of a plan that keeps replicas equal.

    The number of optimizer steps since all met last, every time; all parameters, once in so many steps.
    """

    def __init__(self) -> None:
        self._meetings = self._first = 0

    def steps(self, step: int, meetings: int) -> int:
        """Returns the steps that this rank made since all met last.

        Args:
            step: steps that it made so far.
            meetings: so far.
        """
        if meetings != self._meetings:  # until then some may have trained on without others
            self._meetings, self._first = meetings, step
        return step - self._first

    def digest(self, steps: int, parameters: Mapping[str, Tensor]) -> int:
        """Returns a number that is equal on ranks that made as many steps and hold the same."""
        digest = steps * 0x9E3779
        if steps and steps % STEPS_BETWEEN_DIGESTS == 0:
            digest += digest_of(parameters.values())
        return digest


def digest_of(tensors: Iterable[Tensor]) -> int:
    """Returns 64 bits that differ where any bit of the tensors does, but for one change in 2⁶⁴.

    One pass over memory: the sum of a tensor's words, each times a weight of its place, modulo 2⁶⁴.
    """
    total = 0
    for tensor in tensors:
        total = (total * _PRIME + _digest(tensor)) % (1 << _BITS)
    return total


def digests_by_name(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Returns the digest of each tensor as text, for errors."""
    return {f"bits of {name}": f"{_digest(tensor):016x}" for name, tensor in tensors.items()}


@torch.no_grad()
def _digest(tensor: Tensor) -> int:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if flat.is_complex():
        flat = torch.view_as_real(flat).reshape(-1)
    words = flat.view(_WORDS[flat.element_size()])
    total = int(words.sum(dtype=torch.int64))
    # A sum alone would not notice two elements that changed places.
    rows = words[: words.numel() // _ROW * _ROW].view(-1, _ROW).sum(0, dtype=torch.int64)
    placed = int((rows * torch.arange(1, 2 * _ROW, 2)).sum())
    return (total * _PRIME + placed) % (1 << _BITS)


_ROW: Final = 61
_WORDS: Final[Mapping[int, torch.dtype]] = {
    1: torch.int8,
    2: torch.int16,
    4: torch.int32,
    8: torch.int64,
}


def _packed(state: Mapping[str, Mapping[str, Any]]) -> Tensor:
    try:
        return pack_state(state)
    except TypeError as error:
        raise AttachError(
            f"the optimizer remembers what cannot be made equal on all ranks ({error}), and the plan keeps replicas "
            "equal; begin it with a new optimizer, or attach before its first step."
        ) from None
