"""Every method that `tightwire methods` lists trains between real processes, sends what it said, and agrees."""

from __future__ import annotations

import pytest

from tests.workers import run_processes
from tightwire.architecture import PROGRAMS, AllReduce
from tightwire.catalogue import FAMILIES, catalogue
from tightwire.errors import PlanError
from tightwire.plan import Plan

TRAIN = """
import tightwire as tw
from torch import nn

tw.init(deadline_s=60)
wrong = []
for plan in PLANS:
    torch.manual_seed(rank)
    model = nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    with tw.attach(model, optimizer, plan) as run:
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(8, 20)).square().mean().backward()
            optimizer.step()
    report = run.report()
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    copies = transport.current().exchange(flat.numpy().tobytes())
    is_counted = report.sent_bytes == report.planned_bytes > 0
    if not is_counted or len(set(copies)) != 1 or not flat.isfinite().all():
        wrong.append(plan)
answer(wrong)
"""
PLACES = {
    "sync": "{}",
    "architecture": "bsp/{}",
    "compression": "bsp/allreduce/{}",
    "schedule": "bsp/allreduce/none/{}",
}


def legal(text: str) -> str:
    """Returns a plan, or where it cannot work the first that its refusal names: a server, or gossip, instead."""
    try:
        Plan.parse(text)
    except PlanError as refused:
        return str(refused).rpartition("Nearest legal: ")[2].partition(", or ")[0].rstrip(".")
    return text


@pytest.mark.parametrize("axis", FAMILIES)
def test_every_member_trains_between_processes(axis: str) -> None:
    plans = [legal(PLACES[axis].format(m.example or m.name)) for m in catalogue(axis).values()]
    if axis == "architecture":
        # What is made for given links must be told them; it has tests of its own.
        plans += [f"bsp/allreduce:{program}" for program in PROGRAMS if not AllReduce(program).is_made]
    workers = 3 if axis in ("sync", "architecture") else 2  # two are enough to send and to receive
    ended = run_processes(workers, f"PLANS = {plans!r}\n{TRAIN}", timeout_s=300)
    assert [end.answer for end in ended] == [[]] * workers
