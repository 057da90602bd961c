"""What a sender costs that nobody timed: taken from its nearest relative among those that were, and told as that."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tightwire.answers import Member, Sender
from tightwire.averaging.method import AveragingMethod
from tightwire.catalogue import parse_member
from tightwire.compression.codec import Codec
from tightwire.compression.widened import WidenedCodec
from tightwire.errors import PlanError
from tightwire.profile.cost import CodecCost

# Bytes are told of a square of so many elements a side, in single precision, between two workers.
SIDE, ITEMSIZE = 512, 4
# What all of them are; a class between these and a sender is a kind.
CONTRACTS = (Codec, WidenedCodec, AveragingMethod)


@dataclass(frozen=True, kw_only=True)
class AssumedCost:
    """A cost that was not measured of this sender.

    Attributes:
        cost: to be reckoned with.
        why: what was assumed, to follow "int8's time is".
    """

    cost: CodecCost
    why: str


@functools.lru_cache(maxsize=4096)
def from_relatives(
    sender: Sender, timed: tuple[CodecCost, ...], pass_s_per_element: float
) -> AssumedCost | None:
    """Returns what a sender costs by its nearest relative; None if none was timed.

    Relatives are those of the same name, else those of the same kind (int8 and int4, which share their kernels but for
    the bits); of several, the one whose messages are most alike in size. Of a codec every element is read once whatever
    its message holds: with the message's bytes changes what is written and read of it, at the rate of memory. A method
    multiplies matrices, and its work grows with its rank, as its bytes do.

    Args:
        sender: that was not timed.
        timed: what was.
        pass_s_per_element: of a pass over memory.
    """
    known = [(other, cost) for cost in timed if (other := _sender(cost.compression)) is not None]
    kin = [pair for pair in known if pair[0].name == sender.name]
    kin = kin or [pair for pair in known if _kind(pair[0]) is not None and _kind(pair[0]) is _kind(sender)]
    if not kin:
        return None
    size = _bytes_per_element(sender)
    other, cost = min(kin, key=lambda pair: abs(math.log(size / _bytes_per_element(pair[0]))))
    share = size / _bytes_per_element(other)
    if isinstance(sender, AveragingMethod):
        scaled = replace(cost.times(share), fixed_s=cost.fixed_s)
        how = f"{share:.2g} × that of {other}, as its bytes are"
    else:
        more_s = (size - _bytes_per_element(other)) / ITEMSIZE * pass_s_per_element
        scaled = replace(
            cost,
            encode_s_per_element=max(0.0, cost.encode_s_per_element + more_s),
            decode_s_per_element=max(0.0, cost.decode_s_per_element + more_s),
        )
        how = f"that of {other}, but for the bytes of a message"
    return AssumedCost(cost=replace(scaled, compression=str(sender)), why=how)


@functools.cache
def _sender(text: str) -> Sender | None:
    try:
        member: Member = parse_member("compression", text)
    except PlanError:  # a profile of another version
        return None
    return member if isinstance(member, Sender) else None


def _kind(sender: Sender) -> type | None:
    """Returns the class that a sender shares with its like, below the contracts of all; None if there is none."""
    above: Sequence[type] = type(sender).__mro__[1:]
    return above[0] if issubclass(above[0], Codec | AveragingMethod) and above[0] not in CONTRACTS else None


@functools.cache
def _bytes_per_element(sender: Sender) -> float:
    """Returns what a worker sends for an element of a matrix; at least something."""
    numel = SIDE * SIDE
    if isinstance(sender, Codec):
        sent = sender.wire_bytes(numel, ITEMSIZE)
    elif isinstance(sender, AveragingMethod):
        sent = sender.bytes_sent(((SIDE, SIDE),), ITEMSIZE, 2, 0)
    else:
        sent = numel * ITEMSIZE
    return max(sent, 1) / numel
