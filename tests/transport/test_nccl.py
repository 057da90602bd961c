"""The NCCL transport over a communicator that tells what NCCL would hang on: order replaces tags, on all ranks."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.transport.fake_nccl import Complete, FakeCommunicator, Hub, Hubs, WouldHangError
from tightwire.architecture import AllReduce, Runner, build
from tightwire.architecture.allreduce.builders import PROGRAMS
from tightwire.averaging.build import build_averager
from tightwire.averaging.method import AveragingMethod
from tightwire.buckets import plan_layout
from tightwire.catalogue import catalogue, parse_compression
from tightwire.devices.cuda import Cuda
from tightwire.errors import AttachError, PeerError, ProgramError, TransportError
from tightwire.transport import Transport, communicators, run_threads, watched
from tightwire.transport.communicators import TorchCommunicator, require_queue
from tightwire.transport.nccl import Nccl, require_devices_apart
from tightwire.transport.reach import NearAndFar, reaching

# Host memory stands for the device's: everything on these ranks goes in order.
KIND = "cpu"


def over_nccl(size: int, work: Callable[[Transport], Tensor]) -> list[Tensor]:
    hubs = Hubs()
    return run_threads(size, lambda t: work(Nccl(t, hubs.connect, kind=KIND)), deadline_s=60)


def averaged(program: str, codec: str, size: int, numel: int) -> Callable[[Transport], Tensor]:
    def work(transport: Transport) -> Tensor:
        (sender,) = parse_compression(codec)
        runner = Runner(
            build(program, size),
            transport,
            numel=numel,
            dtype=torch.float32,
            codec=sender,
            piece_bytes=4096,  # type: ignore[arg-type]
        )
        drawn = torch.randn(numel, generator=torch.Generator().manual_seed(transport.rank))
        mean = torch.empty(numel)
        runner.run(drawn, mean, seed=3)
        return torch.cat([mean, drawn])

    return work


@pytest.mark.parametrize("size", [2, 3, 5, 8])
@pytest.mark.parametrize("program", [name for name in PROGRAMS if name not in ("native", "synthesised")])
def test_every_program_runs_in_order_and_gives_the_same_bits_as_with_tags(program: str, size: int) -> None:
    numel = 2500 + size
    try:
        gathers = build(program, size).gathers
    except ProgramError:
        return
    for codec in ("topk:0.1",) if gathers else ("none", "int8"):
        work = averaged(program, codec, size, numel)
        for found, expected in zip(
            over_nccl(size, work), run_threads(size, work, deadline_s=60), strict=True
        ):
            assert torch.equal(found, expected), (program, codec, size)


@pytest.mark.parametrize(
    "name", [m.example or m.name for m in catalogue("compression").values() if issubclass(m, AveragingMethod)]
)
def test_every_averaging_method_runs_in_order(name: str) -> None:
    sender = parse_compression(name)[0]
    layout = plan_layout({"w": torch.empty(24, 30), "b": torch.empty(7)}, [[0, 1]])[0]

    def work(transport: Transport) -> Tensor:
        averager = build_averager(AllReduce(), sender, transport, bucket=layout, number=0)  # type: ignore[arg-type]
        drawn = torch.randn(layout.numel, generator=torch.Generator().manual_seed(transport.rank))
        mean = torch.empty(layout.numel)
        averager.run(drawn, mean, seed=3)
        return mean

    for size in (3, 4):
        assert all(map(torch.equal, over_nccl(size, work), run_threads(size, work, deadline_s=60)))


def test_native_sums_and_host_memory_goes_by_the_transport_inside() -> None:
    def work(transport: Transport) -> Tensor:
        x = torch.full((5,), float(transport.rank))
        transport.all_reduce(x).wait()
        return x

    assert all(x.eq(3).all() for x in over_nccl(3, work))
    hubs = Hubs()
    found = run_threads(2, lambda t: work(Nccl(t, hubs.connect, kind="cuda")), deadline_s=60)
    assert all(x.eq(1).all() for x in found)
    assert not hubs._hubs


def test_channels_have_communicators_of_their_own() -> None:
    hubs = Hubs()

    def work(transport: Transport) -> Tensor:
        lanes = [Nccl(transport, hubs.connect, kind=KIND).channel() for _ in range(2)]
        x = torch.ones(3)
        for lane in lanes if transport.rank else lanes[::-1]:
            del lane
        for lane in lanes:
            lane.all_reduce(x).wait()
        return x

    run_threads(2, work, deadline_s=60)
    assert len(hubs._hubs) == 1  # of one name each: the wrapped transports were made apart


def swap(transport: Transport, *, first: str) -> Tensor:
    """Sends and receives one message each, waiting in between: `first` waits for that alone."""
    peer = 1 - transport.rank
    x, y = torch.ones(2), torch.zeros(2)
    steps = [lambda: transport.isend(x, peer, 0), lambda: transport.irecv(y, peer, 0)]
    for step in steps if first == "send" else steps[::-1]:
        step().wait()
    return y


@pytest.mark.parametrize(
    ("what", "work"),
    [
        ("the same order on two ranks that needs the opposite", lambda t: swap(t, first="receive")),
        (
            "a send without a receive",
            lambda t: t.isend(torch.ones(2), 1, 0).wait() if t.rank == 0 else leave(t),
        ),
        ("an odd participant", lambda t: t.all_reduce(torch.ones(2)).wait() if t.rank else leave(t)),
        (
            "another order on two ranks",
            lambda t: t.all_reduce(torch.ones(2)).wait() if t.rank else t.isend(torch.ones(2), 1, 0).wait(),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_nccl_would_hang_on_is_told(what: str, work: Callable[[Transport], Tensor]) -> None:
    with pytest.raises((WouldHangError, PeerError)):
        over_nccl(2, work)


def leave(transport: Transport) -> Tensor:
    """Makes its communicator, and asks for nothing."""
    assert isinstance(transport, Nccl)
    transport._connected(torch.device(KIND)).abort()
    return torch.zeros(1)


def test_what_starts_together_ends_together() -> None:
    def work(transport: Transport) -> Tensor:
        peer, y = 1 - transport.rank, torch.zeros(2)
        works = [transport.irecv(y, peer, 0), transport.isend(torch.ones(2), peer, 0)]
        for under_way in works:
            under_way.wait()
        return y

    assert all(y.eq(1).all() for y in over_nccl(2, work))


class Stuck:
    def wait(self) -> None:
        pass

    def is_completed(self) -> bool:
        return False


def test_a_group_that_no_peer_completes_ends_by_the_deadline_with_a_name() -> None:
    class Deaf(FakeCommunicator):
        ended = False

        def together(self, sends: object, receives: object) -> Stuck:  # type: ignore[override]
            return Stuck()

        def abort(self) -> None:
            self.ended = True

    def work(transport: Transport) -> str:
        if transport.rank:
            transport.close()
            return ""
        made: list[Deaf] = []

        def connect(inner: Transport, name: str, at: torch.device) -> Deaf:
            made.append(Deaf(Hub(2), inner.rank))
            return made[-1]

        channel = Nccl(transport, connect, kind=KIND)
        channel.isend(torch.ones(2), 1, 0).wait()  # the stream waits, and not the host
        ends_s = time.monotonic() + 10
        while time.monotonic() < ends_s:
            try:
                channel.require_sound()
            except PeerError as error:
                assert made[0].ended
                with pytest.raises(PeerError):
                    channel.isend(torch.ones(2), 1, 0)
                return str(error)
            time.sleep(0.01)
        return "nothing"

    assert "rank 1" in run_threads(2, work, deadline_s=0.5)[0]


def test_ranks_on_one_device_are_refused_on_all() -> None:
    def work(transport: Transport) -> str:
        with pytest.raises(AttachError) as refused:
            require_devices_apart(transport, f"host/GPU-{transport.rank // 2}")
        return str(refused.value)

    assert all("ranks 0 and 1 train on one device" in text for text in run_threads(4, work, deadline_s=60))


def test_messages_within_nodes_go_by_nccl_and_others_by_host_memory() -> None:
    hubs = Hubs()

    def work(transport: Transport) -> Tensor:
        name = str(transport.rank // 2)
        both = NearAndFar.of(transport, 2, lambda n: Nccl(n, hubs.connect, kind=KIND, name=name), KIND)
        return averaged("hierarchical", "none", 4, 3001)(both)

    expected = run_threads(4, averaged("hierarchical", "none", 4, 3001), deadline_s=60)
    assert all(map(torch.equal, run_threads(4, work, deadline_s=60), expected))
    assert sorted(hubs._hubs) == ["0", "1"]


def test_auto_takes_pinned_memory_for_shared_devices_and_nccl_is_refused_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Cuda, "identity", lambda self, device: "GPU-0")
    where = torch.device("cuda", 0)
    found = run_threads(2, lambda t: type(reaching(t, where, "auto")).__name__, deadline_s=60)
    assert found == ["Pinned", "Pinned"]
    with pytest.raises(AttachError, match="torch has none"):
        run_threads(2, lambda t: reaching(t, where, "nccl"), deadline_s=60)


def test_more_communicators_than_a_device_has_queues_are_refused() -> None:
    require_queue(7, {})
    require_queue(8, {"CUDA_DEVICE_MAX_CONNECTIONS": "32"})
    for living, told in ((8, {}), (1, {"CUDA_DEVICE_MAX_CONNECTIONS": "1"})):
        with pytest.raises(TransportError, match="Start with CUDA_DEVICE_MAX_CONNECTIONS=32"):
            require_queue(living, told)


def test_a_group_that_nccl_calls_complete_and_failed_ends_the_channel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watched, "LOOKS", 1)

    class Broken(FakeCommunicator):
        def together(self, sends: object, receives: object) -> Complete:  # type: ignore[override]
            return Complete()

        def fault(self) -> str:
            return "REMOTE_ERROR"

    def work(transport: Transport) -> str:
        channel = Nccl(transport, lambda inner, name, at: Broken(Hub(2), inner.rank), kind=KIND)
        channel.isend(torch.ones(2), 1 - transport.rank, 0).wait()
        ends_s = time.monotonic() + 10
        while time.monotonic() < ends_s:
            try:
                channel.require_sound()
            except TransportError as error:
                return str(error)
            time.sleep(0.01)
        return "nothing"

    assert all("who all are alive: REMOTE_ERROR" in text for text in run_threads(2, work, deadline_s=20))


def test_a_communicator_of_torch_is_called_as_torch_declares() -> None:
    """Torch's stand-in for a process group has the methods and arguments of the one that speaks NCCL."""
    from torch._C import _distributed_c10d as c10d  # what torch.distributed re-exports

    communicator = TorchCommunicator(c10d.FakeProcessGroup._create_internal(0, 2))  # type: ignore[attr-defined]
    x, y, number = torch.ones(3), torch.zeros(4, dtype=torch.int16), torch.tensor(1.0)
    communicator.together([(x, 1), (number, 1)], [(y, 1), (torch.empty(0), 1)]).wait()
    communicator.all_reduce(x).wait()
    communicator.abort()
    assert communicator not in communicators._living
