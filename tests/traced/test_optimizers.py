"""Every kind of optimizer on the traced device, beside the next forward and under a GradScaler: no race, no wait."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.optim import SGD, Adam, AdamW, Optimizer

from tests.traced.training import TRACED, fused, same, sgd, train
from tightwire.devices.traced.streams import StreamEvent, Streams
from tightwire.errors import AttachError

Make = Callable[[Any], Optimizer]
# What makes the optimizer on the device, and on the CPU, which has no `capturable`.
OPTIMIZERS: dict[str, tuple[Make, Make]] = {
    "SGD, foreach": (lambda p: SGD(p, lr=0.05, momentum=0.9, foreach=True), sgd),
    "SGD, fused": (fused, sgd),
    "AdamW, foreach": (lambda p: AdamW(p, lr=0.01, foreach=True), lambda p: AdamW(p, lr=0.01)),
    "AdamW, fused": (lambda p: AdamW(p, lr=0.01, fused=True), lambda p: AdamW(p, lr=0.01)),
    "Adam, capturable": (
        lambda p: Adam(p, lr=torch.tensor(0.01), capturable=True, foreach=True),
        lambda p: Adam(p, lr=0.01),
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("plan", ["bsp/allreduce:ring/int8+ef", "bsp/allreduce:ring/none/tictac"])
def test_optimizers_of_every_kind_step_after_their_means(plan: str, name: str) -> None:
    on_device, on_host = OPTIMIZERS[name]
    expected = train(plan, "cpu", optimizer=on_host)
    for haste in (0.0, 2.0):
        TRACED.restart(seed=3, haste=haste)
        found = train(plan, "traced", optimizer=on_device)
        assert not list(dict.fromkeys(map(str, TRACED.races)))
        for ours, theirs in zip(found, expected, strict=True):
            assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(ours, theirs, strict=True))
        assert same([found[0]], [found[1]])


@pytest.mark.parametrize("poison", [-1, 1])
def test_a_scaler_and_an_optimizer_that_skips_on_the_device_make_the_host_wait_for_nothing(
    poison: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    phase = threading.local()
    waits: list[str] = []
    wait = Streams.wait

    @contextlib.contextmanager
    def around(what: str) -> Iterator[None]:
        phase.what = what
        yield
        phase.what = ""

    def noted(self: Streams, event: StreamEvent) -> None:
        if what := getattr(phase, "what", ""):
            own = event.stream is self.current(0)
            waits.append(f"{what}: {'what training asked for' if own else 'a lane'}")
        wait(self, event)

    plan = "bsp/allreduce:ring/int8+ef"
    expected = train(plan, "cpu", optimizer=fused, scales=True, steps=3, poison=poison)
    TRACED.restart()
    monkeypatch.setattr(Streams, "wait", noted)
    found = train(plan, "traced", optimizer=fused, scales=True, steps=3, poison=poison, around=around)
    assert not TRACED.races
    assert same(expected, found)
    # Whether a pass was finite, is asked when the next begins: of a lane, which has long been through.
    assert set(waits) == {"backward: a lane"}


def test_a_graph_that_is_being_captured_is_refused() -> None:
    TRACED.restart()
    TRACED.captures = True
    try:
        with pytest.raises(AttachError, match=r"Attach and train outside torch\.cuda\.graph"):
            train("bsp/allreduce:ring", "traced")
    finally:
        TRACED.captures = False
