"""What ranks must have in common before the first step, and how they find out that they have not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from tightwire.answers import Member
from tightwire.averaging import AveragingMethod
from tightwire.compression import Codec
from tightwire.errors import MismatchError
from tightwire.transport import Transport
from tightwire.transport.base import tree_edges
from tightwire.transport.blame import name_ranks

# Bounds the memory of the initial broadcast.
BROADCAST_BYTES = 64 * 2**20


def require_agreement(transport: Transport, facts: Mapping[str, object]) -> None:
    """Makes sure that every rank is about to do the same.

    Args:
        transport: all ranks.
        facts: by what they are called in an error, such as `plan` or `parameter fc.weight`; printable.

    Contract: every rank, before the first step; blocks; sends a digest, and the facts only where digests differ.

    Raises:
        MismatchError: on every rank alike, naming the ranks and the first differences.
    """
    text = json.dumps({key: str(value) for key, value in facts.items()}, sort_keys=True)
    digests = transport.exchange(hashlib.sha256(text.encode()).digest())
    if len(set(digests)) == 1:
        return
    told = [json.loads(other) for other in transport.exchange(text.encode())]
    raise MismatchError(
        f"ranks disagree about what to train; give every rank the same. {differences(dict(enumerate(told)))}"
    )


def differences(facts_by_rank: Mapping[int, Mapping[str, str]], most: int = 3) -> str:
    """Returns in words what differs between ranks: the first few facts, and who has what.

    >>> differences({0: {"lr": "0.1", "plan": "bsp"}, 1: {"lr": "0.2", "plan": "bsp"}})
    'lr: rank 0 has 0.1; rank 1 has 0.2.'
    """
    keys = dict.fromkeys(key for facts in facts_by_rank.values() for key in facts)
    different = [key for key in keys if len({facts.get(key) for facts in facts_by_rank.values()}) > 1]
    lines = [f"{key}: " + "; ".join(_who_has_what(facts_by_rank, key)) for key in different[:most]]
    more = len(different) - most
    return ". ".join(lines) + "." + (f" ({more} more difference{'s' * (more > 1)})" if more > 0 else "")


def _who_has_what(facts_by_rank: Mapping[int, Mapping[str, str]], key: str) -> Iterable[str]:
    ranks_by_value: dict[str, list[int]] = {}
    for rank, facts in facts_by_rank.items():
        ranks_by_value.setdefault(facts.get(key, "nothing"), []).append(rank)
    for value, ranks in ranks_by_value.items():
        yield f"{name_ranks(ranks)} {'has' if len(ranks) == 1 else 'have'} {value}"


def wire_facts(compressions: Iterable[Sequence[Member]]) -> dict[str, object]:
    """Returns what must agree about messages: the version of every format that these compressions write.

    Args:
        compressions: the plan's, and those of its routes.
    """
    members = [member for compression in compressions for member in compression]
    inner = (getattr(member, "sender", None) for member in members)
    senders = [*members, *(sender for sender in inner if isinstance(sender, Codec))]
    return {
        f"wire format of {sender.name}": f"version {sender.wire_version}"
        for sender in senders
        if isinstance(sender, Codec | AveragingMethod)
    }


def model_facts(model: nn.Module, left: Collection[str] = ()) -> dict[str, object]:
    """Returns what must agree about a model: every parameter's and buffer's shape and dtype, and what trains.

    Args:
        model: whose.
        left: names of what is each rank's own.
    """
    facts: dict[str, object] = {}
    for name, parameter in model.named_parameters():
        if name in left:
            continue
        trains = "" if parameter.requires_grad else " frozen"
        facts[f"parameter {name}"] = f"{_shape(parameter)} {parameter.dtype}{trains}"
    for name, buffer in model.named_buffers():
        if name in left:
            continue
        facts[f"buffer {name}"] = f"{_shape(buffer)} {buffer.dtype}"
    return facts


def _shape(tensor: Tensor) -> str:
    return "no shape yet" if nn.parameter.is_lazy(tensor) else str(list(tensor.shape))


def copy_from_first(transport: Transport, tensors: Iterable[Tensor]) -> None:
    """Makes tensors equal to rank 0's, in place; sends those alone that differ anywhere.

    Replicas that were made from one seed, or read from one checkpoint, are equal already: a digest each says so, where
    the tensors themselves would keep a slow line busy for seconds.

    Contract: every rank, with tensors of the same shapes in the same order; blocks where there are any.
    """
    listed = list(tensors)
    if not listed:
        return
    digests = [_digest(t) for t in listed]
    together = hashlib.sha256(b"".join(digests)).digest()
    if len(set(transport.exchange(together))) == 1 and b"" not in digests:
        return
    told = transport.exchange(b"".join(digests))
    unlike, place = list[Tensor](), 0
    for tensor, digest in zip(listed, digests, strict=True):
        end = place + len(digest)
        if not digest or len({other[place:end] for other in told}) > 1:
            unlike.append(tensor)
        place = end
    copy_from(transport, unlike, 0)


@torch.no_grad()
def copy_from(transport: Transport, tensors: Iterable[Tensor], source: int) -> None:
    """Makes tensors equal to one rank's, bit for bit, in place.

    Contract: every rank, with tensors of the same shapes in the same order; blocks.
    """
    pending: list[Tensor] = []
    for tensor in tensors:
        pending.append(tensor)
        if sum(t.numel() * t.itemsize for t in pending) >= BROADCAST_BYTES:
            _copy_together(transport, pending, source)
            pending = []
    _copy_together(transport, pending, source)


@torch.no_grad()
def copy_from_longest(transport: Transport, tensors: Iterable[Tensor], rounds: int) -> int:
    """Makes tensors equal to those of the rank that trained longest, in place; returns the bytes that this rank sent.

    Args:
        transport: all ranks.
        tensors: of the same shapes in the same order on every rank.
        rounds: in which this rank trained.

    Contract: every rank; blocks.
    """
    told = [int.from_bytes(answer, "little") for answer in transport.exchange(rounds.to_bytes(8, "little"))]
    longest = told.index(max(told))
    children, _ = tree_edges(transport.rank, transport.size, longest)
    sent = 0
    for tensor in tensors:
        flat = tensor.detach().contiguous().clone()
        transport.broadcast(flat, longest)
        tensor.copy_(flat)
        sent += len(children) * flat.nbytes
    return sent


def _digest(tensor: Tensor) -> bytes:
    """Returns what tells a tensor's bits from others; nothing on a device, whose lines are faster than digests."""
    if tensor.device.type != "cpu":
        return b""
    held = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(held.numpy().data).digest()


def _copy_together(transport: Transport, tensors: Sequence[Tensor], source: int) -> None:
    if not tensors:
        return
    flat = torch.cat([t.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for t in tensors])
    transport.broadcast(flat, source)
    for tensor, piece in zip(tensors, flat.split([t.numel() * t.itemsize for t in tensors]), strict=True):
        whole = piece.clone().view(tensor.dtype).view(tensor.shape)
        assign(tensor, whole)


def assign(tensor: Tensor, value: Tensor) -> None:
    """Writes to a tensor of which some elements may be the same memory, as of an expanded buffer."""
    for dim, stride in enumerate(tensor.stride()):
        if stride == 0 and tensor.shape[dim] > 1:
            tensor, value = tensor.narrow(dim, 0, 1), value.narrow(dim, 0, 1)
    tensor.copy_(value)
