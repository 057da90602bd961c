"""What every transport must do: each law is run by every rank of a world, on threads and on processes alike."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from torch import Tensor

from tightwire.errors import TransportError
from tightwire.transport import Counting, Transport, native_bytes

SIZES = (0, 1, 7, 1000, 4097, 1_000_003)
DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.uint8,
    torch.int8,
    torch.int32,
    torch.int64,
    torch.bool,
)


def pattern(rank: int, numel: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Small whole numbers, exact in every dtype, different on every rank."""
    return ((torch.arange(numel) + rank) % 7).to(dtype)


def pass_on(transport: Transport, numel: int, dtype: torch.dtype = torch.float32, tag: int = 0) -> Tensor:
    """Sends this rank's pattern to the next rank and returns what the one before it sent."""
    received = torch.empty(numel, dtype=dtype)
    receive = transport.irecv(received, (transport.rank - 1) % transport.size, tag)
    send = transport.isend(pattern(transport.rank, numel, dtype), (transport.rank + 1) % transport.size, tag)
    receive.wait()
    send.wait()
    return received


def delivers_every_size(transport: Transport) -> None:
    for numel in SIZES:
        before = (transport.rank - 1) % transport.size
        assert torch.equal(pass_on(transport, numel), pattern(before, numel))


def delivers_every_dtype(transport: Transport) -> None:
    for dtype in DTYPES:
        before = (transport.rank - 1) % transport.size
        assert torch.equal(pass_on(transport, 5, dtype), pattern(before, 5, dtype))


def delivers_bytes_of_any_view(transport: Transport) -> None:
    after, before = (transport.rank + 1) % transport.size, (transport.rank - 1) % transport.size
    received = torch.empty(3, 4)
    receive = transport.irecv(received, before, 0)
    send = transport.isend(torch.full((12,), float(transport.rank)).view(torch.uint8), after, 0)
    receive.wait()
    send.wait()
    assert torch.equal(received, torch.full((3, 4), float(before)))


def keeps_order_within_a_tag(transport: Transport) -> None:
    after, before = (transport.rank + 1) % transport.size, (transport.rank - 1) % transport.size
    received = [torch.empty(3) for _ in range(5)]
    receives = [transport.irecv(tensor, before, 2) for tensor in received]
    sends = [transport.isend(torch.full((3,), float(i)), after, 2) for i in range(5)]
    for work in [*receives, *sends]:
        work.wait()
    assert [tensor[0].item() for tensor in received] == [0, 1, 2, 3, 4]


def keeps_tags_apart(transport: Transport) -> None:
    after, before = (transport.rank + 1) % transport.size, (transport.rank - 1) % transport.size
    sends = [transport.isend(torch.tensor([tag]), after, tag) for tag in (5, 2**31 - 3, 0)]
    for tag in (0, 5, 2**31 - 3):
        received = torch.tensor([-1])
        transport.irecv(received, before, tag).wait()
        assert received.item() == tag
    for work in sends:
        work.wait()


def works_may_be_waited_for_in_any_order_and_twice(transport: Transport) -> None:
    after, before = (transport.rank + 1) % transport.size, (transport.rank - 1) % transport.size
    received = [torch.empty(2), torch.empty(2)]
    works = [transport.irecv(tensor, before, 1) for tensor in received]
    sends = [transport.isend(torch.full((2,), float(i)), after, 1) for i in range(2)]
    for work in [*reversed(works), *works]:
        work.wait()
    for work in sends:
        work.wait()
    assert [tensor[1].item() for tensor in received] == [0, 1]


def sums_natively(transport: Transport) -> None:
    for name in sorted(transport.native_dtypes):
        for numel in (0, 1, 7, 4097):
            dtype = getattr(torch, name)
            tensor = pattern(transport.rank, numel, dtype)
            transport.all_reduce(tensor).wait()
            total = sum(pattern(r, numel, torch.int64) for r in range(transport.size))
            assert torch.equal(tensor, torch.as_tensor(total).to(dtype)), name


def sums_the_same_bits_everywhere(transport: Transport) -> None:
    generator = torch.Generator().manual_seed(transport.rank)
    tensor = torch.randn(1001, generator=generator)
    transport.all_reduce(tensor).wait()
    assert len(set(transport.exchange(tensor.numpy().tobytes()))) == 1


def refuses_to_sum_what_it_cannot(transport: Transport) -> None:
    with pytest.raises(TransportError, match=r"asked to all-reduce complex64; this transport sums .*float32"):
        transport.all_reduce(torch.zeros(1, dtype=torch.complex64))


def refuses_wrong_peers_and_layouts(transport: Transport) -> None:
    for peer in (transport.rank, -1, transport.size):
        with pytest.raises(TransportError, match="a peer is another rank"):
            transport.isend(torch.zeros(1), peer, 0)
    for start in (transport.isend, transport.irecv) if transport.size > 1 else ():
        with pytest.raises(TransportError, match=r"call \.contiguous\(\) first"):
            start(torch.zeros(4, 4).t(), (transport.rank + 1) % transport.size, 0)


def exchanges_payloads_of_any_size(transport: Transport) -> None:
    payload = bytes([transport.rank]) * (transport.rank * 1000)
    assert transport.exchange(payload) == [bytes([r]) * (r * 1000) for r in range(transport.size)]
    assert transport.exchange(b"") == [b""] * transport.size


def broadcasts_from_every_rank(transport: Transport) -> None:
    for src in range(transport.size):
        for numel in (0, 1, 1000):
            tensor = pattern(transport.rank, numel)
            transport.broadcast(tensor, src)
            assert torch.equal(tensor, pattern(src, numel))


def channels_are_independent(transport: Transport) -> None:
    other = transport.channel()
    assert (other.rank, other.size) == (transport.rank, transport.size)
    if transport.size == 1:
        return
    after, before = (transport.rank + 1) % transport.size, (transport.rank - 1) % transport.size
    sends = [t.isend(torch.tensor([float(i)]), after, 4) for i, t in enumerate((transport, other))]
    for i, t in reversed([*enumerate((transport, other))]):
        received = torch.empty(1)
        t.irecv(received, before, 4).wait()
        assert received.item() == i
    for work in sends:
        work.wait()


def attends_what_arrives(transport: Transport) -> None:
    after, before = (transport.rank + 1) % transport.size, (transport.rank - 1) % transport.size
    received = torch.empty(5)
    receive = transport.irecv(received, before, 6)
    send = transport.isend(pattern(transport.rank, 5), after, 6)
    assert receive.attend()
    assert receive.attend()
    assert send.attend()
    assert torch.equal(received, pattern(before, 5))
    transport.barrier()


def attends_until_its_channel_closes(transport: Transport) -> None:
    channel = transport.channel()
    arrived: list[bool] = []
    receive = channel.irecv(torch.empty(5), (transport.rank + 1) % transport.size, 6)
    thread = threading.Thread(target=lambda: arrived.append(receive.attend()))
    thread.start()
    time.sleep(0.02)
    channel.close()
    thread.join(5)
    assert arrived == [False]
    transport.barrier()
    delivers_bytes_of_any_view(transport)  # nothing else is harmed


def groups_renumber(transport: Transport) -> None:
    ranks = [transport.size - 1, 0] if transport.size > 1 else [0]
    group = transport.group(ranks)
    assert (group is not None) == (transport.rank in ranks)
    if group is not None:
        assert (group.rank, group.size) == (ranks.index(transport.rank), len(ranks))
        assert group.exchange(bytes([transport.rank])) == [bytes([r]) for r in ranks]
    with pytest.raises(TransportError, match="different ranks between 0"):
        transport.group([0, 0])
    transport.barrier()


def counts_exactly(transport: Transport) -> None:
    counting = Counting(transport)
    pass_on(counting, 1000, torch.float64)
    counting.all_reduce(torch.zeros(1001)).wait()
    counting.exchange(b"abc")
    counting.barrier()
    channel = counting.channel()
    pass_on(channel, 3, torch.uint8)
    native = native_bytes(1001, 4, transport.size, transport.rank)
    assert counting.bytes_sent == 8000 + native + 3
    assert counting.messages == 3
    assert counting.tally.control_bytes == 3 * (transport.size - 1)
    assert counting.tally.bytes_to == {(transport.rank + 1) % transport.size: 8003}
    group = counting.group([transport.size - 1, 0])
    counting.tally.clear()
    if group is not None:
        group.broadcast(torch.zeros(10), src=1)
    assert counting.tally.bytes_to == ({transport.size - 1: 40} if transport.rank == 0 else {})


ALONE = (
    sums_natively,
    refuses_to_sum_what_it_cannot,
    refuses_wrong_peers_and_layouts,
    exchanges_payloads_of_any_size,
    broadcasts_from_every_rank,
    channels_are_independent,
    groups_renumber,
)
LAWS = (
    *ALONE,
    delivers_every_size,
    delivers_every_dtype,
    delivers_bytes_of_any_view,
    keeps_order_within_a_tag,
    keeps_tags_apart,
    works_may_be_waited_for_in_any_order_and_twice,
    sums_the_same_bits_everywhere,
    attends_what_arrives,
    attends_until_its_channel_closes,
    counts_exactly,
)
