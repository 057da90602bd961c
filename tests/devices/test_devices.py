"""Devices: host memory needs no order, others are refused by name, and an exchange follows what filled its buckets."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import threading
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tightwire import kernels
from tightwire._attach import attach
from tightwire.architecture.round import Round
from tightwire.averaging import BucketAverager, build_averager
from tightwire.buckets import Bucket, plan_layout
from tightwire.catalogue import parse_compression
from tightwire.devices import DEVICES, Device, DeviceMemory, Mark, device_of, require_one_device
from tightwire.devices.cuda import Cuda
from tightwire.devices.pool import PinnedPool
from tightwire.errors import AttachError, DeviceError, TightwireError
from tightwire.plan import Plan
from tightwire.runtime.exchange import Exchange
from tightwire.runtime.trace import Tracer
from tightwire.schedule import Agenda, Piece, Wfbp
from tightwire.transport import Single, Transport, run_threads


class Numbered(Mark):
    def __init__(self, thread: str) -> None:
        self.thread = thread


class Recording(Device):
    """Notes which thread follows whose mark."""

    kind, is_host = "cpu", True

    def __init__(self) -> None:
        self.followed: list[tuple[str, str]] = []

    def mark(self, at: torch.device) -> Mark:
        return Numbered(threading.current_thread().name)

    def follow(self, mark: Mark) -> None:
        assert isinstance(mark, Numbered)
        self.followed.append((threading.current_thread().name, mark.thread))

    def wait(self, mark: Mark) -> None:
        raise AssertionError("nothing here waits on the host")

    def side(self, like: torch.device) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def current(self, at: torch.device) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def drain(self, at: torch.device) -> None:
        raise AssertionError("nothing here waits on the host")

    def time_s(self, work: Callable[[], object], at: torch.device) -> float:
        raise AssertionError("nothing here is timed")

    def count(self) -> int:
        return 1

    def facts(self, device: torch.device) -> dict[str, object]:
        return {}

    def forget_peak(self, device: torch.device) -> None:
        pass

    captures = False

    def require_order(self, at: torch.device) -> None:
        if self.captures:
            raise AttachError("a graph is being captured")

    def pinned(self, num_bytes: int) -> Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8)

    def give_back(self, memory: Tensor, after: Mark | None = None) -> None:
        pass

    def copy(self, source: Tensor, target: Tensor) -> None:
        target.copy_(source)

    def random_state(self, at: torch.device) -> Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_random_state(self, at: torch.device, state: Tensor) -> None:
        pass

    def identity(self, device: torch.device) -> str:
        return "here"

    def memory(self, devices: Iterable[torch.device]) -> DeviceMemory:
        return DeviceMemory(allocated_bytes=0, peak_bytes=0, pinned_bytes=0)

    def require_usable(self, device: torch.device) -> None:
        pass


def test_host_memory_is_known_and_other_devices_are_refused_by_name() -> None:
    assert device_of({"w": torch.zeros(2)}) is DEVICES["cpu"]
    with pytest.raises(AttachError, match=r"head\.weight is on the meta device"):
        device_of({"head.weight": torch.empty(2, device="meta")})


@pytest.mark.parametrize("filled", [True, False])
def test_lanes_follow_who_filled_a_bucket_and_waiters_follow_the_lanes(filled: bool) -> None:
    layouts = plan_layout({"a": torch.zeros(3), "b": torch.zeros(2)}, [[0], [1]])
    plan = Plan.parse("bsp")
    averagers = [
        BucketAverager(
            Bucket(layout),
            parse_compression("none"),
            lambda sender, layout=layout, number=number: build_averager(  # type: ignore[misc]
                plan.architecture, sender, Single(), bucket=layout, number=number
            ),
            workers=1,
        )
        for number, layout in enumerate(layouts)
    ]
    device = Recording()
    device.captures = True
    agenda = Agenda(pieces=(Piece(0, 0, 12), Piece(1, 0, 8)))
    exchange = Exchange(averagers, Wfbp().pacer(agenda), Tracer(), agenda=agenda, device=device)
    try:
        with pytest.raises(AttachError, match="captured"):
            exchange.begin(Round(number=1))
        device.captures = False
        exchange.begin(Round(number=1))
        if filled:
            exchange.ready(0)
        exchange.end()
        assert exchange.wait()
    finally:
        exchange.close()
    main, lane = threading.current_thread().name, "tightwire-communication-0"
    assert device.followed.count((lane, main)) == 2
    assert device.followed.count((main, lane)) == 2


def test_a_model_on_two_devices_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))
    with pytest.raises(AttachError, match=r"1\.weight is on the meta device"):
        require_one_device(dict(model.named_parameters()))


def test_pinned_memory_is_handed_out_again_only_after_the_copy_behind_it() -> None:
    waited: list[Mark] = []
    pool = PinnedPool(lambda n: torch.empty(n, dtype=torch.uint8), waited.append)
    first, mark = pool.take(5000), Numbered("copy")
    pool.put(first, mark)
    other = pool.take(100)
    assert other.data_ptr() != first.data_ptr()  # of another size
    assert pool.take(6000).data_ptr() == first.data_ptr()
    assert waited == [mark]
    assert pool.num_bytes == 8192 + 4096


def test_pinned_memory_of_a_message_that_never_arrived_ends_with_whoever_waited_for_it() -> None:
    pool = PinnedPool(lambda n: torch.empty(n, dtype=torch.uint8), lambda mark: None)
    arrived, lost = (pool.take(5000).view(torch.float32).view(25, 50) for _ in range(2))
    pool.put(arrived, None)
    assert pool.num_bytes == 2 * 8192
    del lost
    assert pool.num_bytes == 8192
    again = pool.take(8192)
    assert (again.data_ptr(), again.numel(), again.dtype) == (arrived.data_ptr(), 8192, torch.uint8)


def test_a_device_without_memory_is_named_and_nothing_of_the_round_is_kept() -> None:
    (layout,) = plan_layout({"a": torch.zeros(3)}, [[0]])
    kept: list[int] = []

    class Full:
        bucket = Bucket(layout)
        finite = True

        def run(self, now: Round) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        def keep(self) -> None:
            kept.append(1)

    exchange = Exchange([Full()], Wfbp().pacer(Agenda(pieces=(Piece(0, 0, 12),))), Tracer())  # type: ignore[list-item]
    try:
        exchange.begin(Round(number=1))
        exchange.end()
        with pytest.raises(DeviceError, match=r"no memory left while bucket 0 \(12 bytes\)"):
            exchange.wait()
    finally:
        exchange.close()
    assert not kept


def test_a_device_without_memory_ends_the_run_on_all_ranks_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """The full one says so, the others name it, and each has the parameters of the step before."""
    run = BucketAverager.run
    full: set[int] = set()

    def run_unless_full(self: BucketAverager, now: Round) -> None:
        if id(self.bucket) in full:
            raise torch.OutOfMemoryError("CUDA out of memory")
        run(self, now)

    monkeypatch.setattr(BucketAverager, "run", run_unless_full)

    def work(transport: Transport) -> str:
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        attached = attach(model, optimizer, "bsp/allreduce:ring/int8+ef", transport=transport)
        before = [p.detach().clone() for p in model.parameters()]
        if transport.rank == 1:
            full.update(id(a.bucket) for a in attached._engine._exchange.averagers)  # type: ignore[attr-defined]
        with pytest.raises(TightwireError) as ended:
            model(torch.ones(4, 3)).sum().backward()
        assert all(map(torch.equal, before, model.parameters()))
        return f"{type(ended.value).__name__}: {ended.value}"

    said = run_threads(3, work, deadline_s=20)
    assert "DeviceError: cpu had no memory left" in said[1]
    assert all("rank 1" in said[rank] for rank in (0, 2)), said


def test_cuda_is_refused_where_torch_has_none() -> None:
    if DEVICES["cuda"].count():
        pytest.skip("here it has")
    with pytest.raises(AttachError, match=r"the model is on cuda:0, and this torch .* has no CUDA"):
        DEVICES["cuda"].require_usable(torch.device("cuda", 0))


def test_without_triton_or_with_an_old_one_plain_torch_takes_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for found, why in (("3.1.0", r"Triton 3\.1\.0 is older than 3\.2"), ("", "Triton is not installed")):
        monkeypatch.setattr(importlib.metadata, "version", lambda name, found=found: found)
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, found=found: object() if found else None
        )
        with pytest.warns(RuntimeWarning, match=why):
            assert kernels._module.__wrapped__("triton").__name__ == "tightwire.kernels.reference"


def test_a_thread_has_one_stream_of_a_device_however_often_it_goes_aside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[Any] = []

    class Stream:
        def __init__(self) -> None:
            made.append(self)
            self.waits = 0

        def synchronize(self) -> None:
            self.waits += 1

    monkeypatch.setattr(torch.cuda, "device", lambda at: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    device = Cuda()

    def work() -> None:
        for _ in range(3):
            with device.side(torch.device("cuda", 0)):
                pass

    for _ in range(2):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert [stream.waits for stream in made] == [3, 3]
