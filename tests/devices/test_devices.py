"""Devices: host memory needs no order, others are refused by name, and an exchange follows what filled its buckets."""

from __future__ import annotations

import threading

import pytest
import torch

from tightwire.architecture.round import Round
from tightwire.averaging import BucketAverager, build_averager
from tightwire.buckets import Bucket, plan_layout
from tightwire.catalogue import parse_compression
from tightwire.devices import DEVICES, Device, Mark, device_of
from tightwire.errors import AttachError
from tightwire.plan import Plan
from tightwire.runtime.exchange import Exchange
from tightwire.runtime.trace import Tracer
from tightwire.schedule import Agenda, Piece, Wfbp
from tightwire.transport import Single


class Numbered(Mark):
    def __init__(self, thread: str) -> None:
        self.thread = thread


class Recording(Device):
    """Notes which thread follows whose mark."""

    def __init__(self) -> None:
        self.followed: list[tuple[str, str]] = []

    def mark(self) -> Mark:
        return Numbered(threading.current_thread().name)

    def follow(self, mark: Mark) -> None:
        assert isinstance(mark, Numbered)
        self.followed.append((threading.current_thread().name, mark.thread))


def test_host_memory_is_known_and_other_devices_are_refused_by_name() -> None:
    assert device_of({"w": torch.zeros(2)}) is DEVICES["cpu"]
    with pytest.raises(AttachError, match=r"head\.weight among them, are on meta"):
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
    agenda = Agenda(pieces=(Piece(0, 0, 12), Piece(1, 0, 8)))
    exchange = Exchange(averagers, Wfbp().pacer(agenda), Tracer(), agenda=agenda, device=device)
    try:
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
