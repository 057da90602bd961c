"""Law 11 over NCCL: what a group moves is read and written by streams alone, and nobody reads it too early."""

from __future__ import annotations

import zlib

import pytest
import torch

from tests.traced.over_nccl import TracedHubs, nccl, nccl_inside
from tests.traced.training import TRACED, same, train
from tightwire.catalogue import parse_compression
from tightwire.compression import Codec
from tightwire.compression.checks import FiniteCheck
from tightwire.devices.traced import KIND
from tightwire.errors import TensorError
from tightwire.transport import Transport, run_threads
from tightwire.transport.nccl import Nccl

# Of each kind of message: sums of NCCL's own, pieces, messages of codecs, gathers, methods, lanes, local rounds.
PLANS = [
    "bsp",
    "bsp/allreduce:native",
    "bsp/allreduce:native/fp16",
    "bsp/allreduce:ring/int8+ef",
    "bsp/allreduce:ring,streams=2",
    "bsp/allreduce/topk:0.1+ef",
    "bsp/allreduce/powersgd:2+ef",
    "bsp/allreduce/sign",
    "bsp/allreduce/none/bytescheduler:128B,256B",
    "local:2/allreduce/int8+ef",
]
FOUR = ["bsp/allreduce:halving-doubling", "bsp/allreduce:hierarchical,shape=2x2/int8+ef"]


@pytest.mark.parametrize("plan", [*PLANS, *FOUR])
def test_streams_wait_for_groups_in_any_order(plan: str) -> None:
    workers = 4 if plan in FOUR else 2
    expected = train(plan, "cpu", workers=workers)
    seed = zlib.crc32(plan.encode())
    TRACED.restart(seed=seed, haste=(0.0, 2.0)[seed % 2])
    found = train(plan, "traced", workers=workers, reach=nccl())
    assert not list(dict.fromkeys(map(str, TRACED.races)))
    assert same(expected, found)


def test_nccl_inside_nodes_and_pinned_memory_across() -> None:
    plan = "bsp/allreduce:hierarchical,shape=2x2/int8+ef"
    expected = train(plan, "cpu", workers=4)
    TRACED.restart(seed=2, haste=0.5)
    assert same(expected, train(plan, "traced", workers=4, reach=nccl_inside(2)))
    assert not TRACED.races


def test_the_host_waits_for_no_group_and_a_read_that_does_not_wait_is_a_race() -> None:
    TRACED.restart()
    hubs = TracedHubs()

    def work(transport: Transport) -> bool:
        with TRACED.side(torch.device(KIND)):
            x = torch.full((3,), 1.0 + transport.rank, device=KIND)
            channel = Nccl(transport, hubs.connect, kind=KIND)
            under_way = channel.all_reduce(x)
            early = TRACED.on_host(x).tolist()  # nothing has been done yet
            if transport.rank:
                under_way.wait()
            return early != [3.0] * 3 and x.sum().item() == 9

    assert run_threads(2, work, deadline_s=60) == [False, True]
    assert all("rank 0" in race.second.agent for race in TRACED.races)
    assert TRACED.races


@pytest.mark.parametrize("plan", ["bsp", "bsp/allreduce/topk:0.1+ef", "bsp/allreduce/blocktopk:0.1+ef"])
def test_the_host_waits_for_a_device_where_the_optimizer_needs_the_mean_and_nowhere_before(plan: str) -> None:
    TRACED.restart()
    train(plan, "traced", reach=nccl())
    once = (
        "FiniteCheck.__bool__",
        "compile_kernels",
        "_copy_together",
        "run_threads",
    )  # but for the first: at attach
    assert not [line for line in TRACED.scheduler.waits if not any(name in line for name in once)]


def test_a_message_that_cannot_be_is_told_where_its_mean_is_looked_at() -> None:
    TRACED.restart()
    device = torch.device(KIND)
    with TRACED.side(device):
        codec = parse_compression("topk:0.5")[0]
        assert isinstance(codec, Codec)
        x, out = torch.ones(8, device=device), torch.zeros(8, device=device)
        message = torch.empty(codec.wire_bytes(8, 4), dtype=torch.uint8, device=device)
        codec.encode(x, message)
        message[4:8] = message[:4]  # an index twice
        waits = set(TRACED.scheduler.waits)
        codec.decode(message, out, add=True)  # the host does not know yet
        check = FiniteCheck(device)
        check.ask(out)
        assert TRACED.scheduler.waits == waits
        with pytest.raises(TensorError, match="indices do not ascend"):
            bool(check)
        assert not out.any()
        check.ask(out)  # it is told once
        assert check
