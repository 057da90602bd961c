"""A switch that adds: the laws of the mean, of traffic and of agreement, also where the hosts must take over."""

import select
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import tightwire as tw
from tightwire.architecture import AllReduce, Setting
from tightwire.architecture.allreduce.switched import switched_bytes
from tightwire.averaging import Averager, all_reduce_averager
from tightwire.buckets import plan_layout
from tightwire.catalogue import parse_compression
from tightwire.compression import Codec
from tightwire.errors import LabError, PlanError, TransportError
from tightwire.lab import AddingSwitch, Lab, Topology
from tightwire.lab.adder import Adder
from tightwire.plan import Plan
from tightwire.transport import Counting, Switch, Transport, run_threads
from tightwire.transport.adding import SwitchAddress

SLOT = 4096
ARCHITECTURE = AllReduce("in-network")


@dataclass
class Outcome:
    """What a rank had, has, and sent."""

    given: Tensor
    left: Tensor
    mean: Tensor
    sent: int
    averager: Averager
    did: Any


@contextmanager
def adder(slots: int) -> Iterator[Adder]:
    made = Adder(slots, SLOT, host="127.0.0.1")
    thread = threading.Thread(target=made.serve)
    thread.start()
    yield made
    made.close()
    thread.join()


def switch_at(made: Adder, slots: int) -> Switch:
    return Switch(SwitchAddress(host="127.0.0.1", port=made.port, slots=slots, slot_bytes=SLOT))


def gradient(rank: int, numel: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(numel, generator=torch.Generator().manual_seed(rank)).to(dtype)


def average(
    transport: Transport,
    made: Adder,
    slots: int,
    given: Tensor,
    text: str = "none",
    lanes: int = 1,
    before: Callable[[], object] = lambda: None,
) -> Outcome:
    """Averages once per lane, all lanes at once, the last of several rounds being returned."""
    counting, switch = Counting(transport), switch_at(made, slots)
    setting = Setting(num_ranks=transport.size, switch=switch)
    (codec,) = parse_compression(text)
    assert isinstance(codec, Codec)
    connected = [ARCHITECTURE.connect(counting, setting) for _ in range(lanes)]
    layout = plan_layout({"x": given}, [[0]])[0]
    built = [
        all_reduce_averager(ARCHITECTURE, codec, lane, bucket=layout, tag=0, setting=setting)
        for lane in connected
    ]
    lefts, means = [given.clone() for _ in built], [torch.empty_like(given) for _ in built]
    sent = counting.bytes_sent
    before()
    threads = [
        threading.Thread(target=one.run, args=(left, mean), kwargs={"seed": 3})
        for one, left, mean in zip(built, lefts, means, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(mean, means[0]) or mean.isnan().any() for mean in means)
    sent = counting.bytes_sent - sent
    for lane in connected:
        lane.close()
    return Outcome(given, lefts[0], means[0], sent, built[0], switch.account)


def check_mean(found: list[Outcome], tolerance: float) -> None:
    wanted = torch.stack([one.given.double() - one.left.double() for one in found]).mean(0)
    for one in found:
        assert torch.equal(one.mean, found[0].mean)
        torch.testing.assert_close(one.mean.double(), wanted, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(
    ("workers", "numel", "text", "dtype", "tolerance"),
    [
        (4, 50_001, "none", torch.float32, 1e-6),
        (3, 5_000, "none", torch.float64, 1e-12),
        (2, 7, "none", torch.float16, 2e-3),
        (3, 50_001, "int8", torch.float32, 1e-6),
        (2, 20_000, "int8:rounding=stochastic", torch.bfloat16, 2e-2),
    ],
)
def test_laws_of_mean_traffic_agreement_and_error(
    workers: int, numel: int, text: str, dtype: torch.dtype, tolerance: float
) -> None:
    with adder(8) as made:
        found = run_threads(
            workers, lambda t: average(t, made, 8, gradient(t.rank, numel, dtype), text), deadline_s=20
        )
    check_mean(found, tolerance)
    exact = torch.stack([one.given.double() for one in found]).mean(0)
    error = float((exact - found[0].mean.double()).square().sum() / exact.square().sum())
    (codec,) = parse_compression(text)
    assert isinstance(codec, Codec)
    for one in found:
        assert one.sent == one.averager.bytes_sent == switched_bytes(codec, numel, workers, SLOT)
        assert one.averager.error is not None
        if dtype.itemsize >= 4:
            assert error <= 2 * one.averager.error
        assert (one.did.refused, one.did.lost) == (0, "")
    assert made.most_slots <= 8


def test_more_slots_than_a_slot_has_words_are_used_all_the_same() -> None:
    many = SLOT // 4 + 1
    with adder(many) as made:
        found = run_threads(
            2,
            lambda t: average(t, made, many, gradient(t.rank, many * SLOT // 2, torch.float32), "none"),
            deadline_s=20,
        )
        assert made.added > 0
    check_mean(found, 1e-6)
    assert [one.did.lost for one in found] == ["", ""]


def test_a_line_of_which_nothing_came_yet_stays() -> None:
    """Its number may be that of one that was closed a moment ago, of which the kernel had more to tell."""
    made = Adder(2, SLOT, host="127.0.0.1")
    with socket.create_connection(("127.0.0.1", made.port)):
        made._accept()
        [line] = made._connections.values()
        made._attend(line, select.EPOLLIN)
        assert line in made._connections.values()
        made._end()


def test_what_finds_no_slot_is_added_by_the_hosts() -> None:
    with adder(4) as made:
        found = run_threads(
            3, lambda t: average(t, made, 4, gradient(t.rank, 30_000, torch.float32), lanes=3), deadline_s=20
        )
        assert made.refused > 0
        assert made.most_slots == 4
    check_mean(found, 1e-6)
    for one in found:
        assert one.did.refused == made.refused
        assert "for want of a free slot" in str(one.did)


def test_hosts_take_over_where_the_switch_dies() -> None:
    with adder(4) as first, adder(4) as second:

        def die(rank: int) -> Callable[[], object]:
            return (lambda: threading.Timer(0.01, first.close).start()) if rank == 0 else lambda: None

        numel = 400_000
        found = run_threads(
            3,
            lambda t: average(t, first, 4, gradient(t.rank, numel, torch.float32), before=die(t.rank)),
            deadline_s=20,
        )
        whole = run_threads(
            3, lambda t: average(t, second, 4, gradient(t.rank, numel, torch.float32)), deadline_s=20
        )
        first.close = lambda: None  # type: ignore[method-assign]
    check_mean(found, 1e-6)
    assert torch.equal(found[0].mean, whole[0].mean)
    for one in found:
        assert one.did.taken_over > 0
        assert "after the switch was lost" in str(one.did)


@pytest.mark.parametrize("text", ["none", "int8"])
def test_what_is_not_finite_reaches_all_and_what_is_tiny_is_left(text: str) -> None:
    def given(rank: int) -> Tensor:
        x = torch.zeros(5_000)
        x[:1024] = 1e-30 * (rank + 1)
        if rank == 1:
            x[4_000] = torch.inf
        return x

    with adder(4) as made:
        found = run_threads(2, lambda t: average(t, made, 4, given(t.rank), text), deadline_s=20)
    for one in found:
        assert one.mean[4_000:].isnan().any()
        assert torch.equal(one.mean[:1024], torch.zeros(1024))
        assert torch.equal(one.left[:1024], one.given[:1024])


def test_a_run_says_what_the_switch_did(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(transport: Transport) -> tuple[tw.Report, Tensor]:
        torch.manual_seed(0)
        model = torch.nn.Linear(30, 50)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with tw.attach(model, optimizer, "bsp/allreduce:in-network", transport=transport) as run:
            for step in range(4):
                optimizer.zero_grad()
                model(
                    gradient(10 * transport.rank + step, 60, torch.float32).view(2, 30)
                ).square().sum().backward()
                optimizer.step()
        return run.report(), model.weight.detach()

    with adder(8) as made:
        monkeypatch.setenv("TIGHTWIRE_SWITCH", str(switch_at(made, 8).address))
        found = run_threads(2, train, deadline_s=20)
    for report, weight in found:
        assert report.planned_bytes == report.sent_bytes
        assert "added by the switch" in str(report)
        assert torch.equal(weight, found[0][1])


def test_what_cannot_be_is_refused() -> None:
    for text, said in (
        ("bsp/allreduce:in-network/topk:0.01", "a switch adds integers"),
        ("bsp/allreduce:in-network/bf16", "a switch adds integers"),
        ("bsp/allreduce:in-network,streams=2", "has one line to the switch"),
        ("bsp/allreduce:in-network,order=0-1", "for a program of our own"),
    ):
        with pytest.raises(PlanError, match=said):
            Plan.parse(text)
    assert str(Plan.parse("bsp/allreduce:in-network/int8").architecture) == "allreduce:in-network"
    with pytest.raises(PlanError, match="no launcher told of one"):
        run_threads(2, lambda t: ARCHITECTURE.connect(t, Setting(num_ranks=2)))
    nobody = Switch(SwitchAddress(host="127.0.0.1", port=1, slots=4, slot_bytes=SLOT))
    with pytest.raises(TransportError, match="cannot reach the switch"):
        run_threads(2, lambda t: ARCHITECTURE.connect(t, Setting(num_ranks=2, switch=nobody)))
    for memory in ("adds,slots=0", "adds,slot=4B", "adds,slots=1,slot=1001B"):
        with pytest.raises(LabError, match="no memory to add in"):
            AddingSwitch.parse(memory)
    for wrong in ("subtracts", "adds,size=3", "adds,slots=many"):
        with pytest.raises(LabError, match="write adds"):
            AddingSwitch.parse(wrong)
    with pytest.raises(TransportError, match="is no switch"):
        SwitchAddress.parse("somewhere")
    address = SwitchAddress.parse("10.0.0.1:5,slots=2,slot=4KiB")
    assert SwitchAddress.parse(str(address)) == address


def test_strangers_and_half_messages_end_their_line_alone() -> None:
    import socket

    with adder(4) as made:
        for junk in (b"\xff" * 64, b"GET / HTTP/1.1\r\n\r\n" * 4, bytes([3, 4]) + bytes(30)):
            with socket.create_connection(("127.0.0.1", made.port), timeout=5) as line:
                line.sendall(junk)
                line.settimeout(5)
                assert line.recv(1) == b""
        found = run_threads(
            2, lambda t: average(t, made, 4, gradient(t.rank, 3_000, torch.float32)), deadline_s=20
        )
    check_mean(found, 1e-6)


SCRIPT = """
import torch, tightwire as tw
from tightwire.architecture import AllReduce, Setting
from tightwire.averaging import all_reduce_averager
from tightwire.buckets import plan_layout
from tightwire.transport import switch
transport = tw.init()
setting = Setting(num_ranks=transport.size, switch=switch())
lane = AllReduce("in-network").connect(transport, setting)
given = torch.full((100_000,), float(transport.rank + 1))
averager = all_reduce_averager(
    AllReduce("in-network"), tw.Plan.parse("bsp").compression[0], lane,
    bucket=plan_layout({"x": given}, [[0]])[0], tag=0, setting=setting,
)
mean = torch.empty_like(given)
number = 0
while not setting.switch.account.lost:  # all ranks lose it in one run
    number += 1
    if transport.rank == 0 and number == 2:
        print("half", flush=True)
    transport.barrier()
    averager.run(given.clone(), mean, seed=0)
    assert torch.equal(mean, torch.full_like(mean, 1.5)), mean
print("did", setting.switch.account, flush=True)
"""


def test_in_the_lab_packets_are_lost_and_then_the_switch() -> None:
    said: list[str] = []
    with Lab(
        Topology(workers=2, rate_bytes_per_s=50e6), switch=AddingSwitch(slots=16, slot_bytes=16384)
    ) as lab:
        if not lab.shapes_everything:
            pytest.skip("no network namespaces here")
        lab.lose(1, 32)

        def on_line(line: Any) -> None:
            said.append(line.text)
            if line.text == "half":
                lab.kill_switch()

        result = lab.run([sys.executable, "-c", SCRIPT], on_line=on_line, timeout_s=60)
        assert lab.traffic()[1].dropped > 0
    assert result.ok, said
    assert all("lost" in text for text in said if text.startswith("did")), said
