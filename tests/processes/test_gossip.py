"""Gossip between real processes: what is sent, who goes on when one is killed, and averaging behind computation."""

from __future__ import annotations

import pytest

from tests.workers import run_processes

TRAIN = """
import tightwire as tw
from torch import nn

tw.init(deadline_s=20)
torch.manual_seed(rank)
model = nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 3))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
with tw.attach(model, optimizer, PLAN) as run:
    for step in range(20):
        if step == 8 and rank == VICTIM:
            os.kill(os.getpid(), signal.SIGKILL)
        optimizer.zero_grad()
        model(torch.randn(8, 20)).square().mean().backward()
        optimizer.step()
        if step == 7:
            transport.current().barrier()
report = run.report()
digest = sum(p.detach().double().sum().item() for p in model.parameters())
answer([report.sent_bytes == report.planned_bytes > 0, report.rounds, digest])
"""


@pytest.mark.parametrize("plan", ["bsp/gossip:exponential/choco:topk=0.2", "asp/gossip:ad-psgd"])
def test_processes_gossip_and_agree(plan: str) -> None:
    answers = [e.answer for e in run_processes(3, f"PLAN, VICTIM = {plan!r}, -1\n{TRAIN}")]
    assert all(counted and rounds and digest == answers[0][2] for counted, rounds, digest in answers)


@pytest.mark.parametrize("plan", ["bsp/gossip:ring", "asp/gossip:ad-psgd"])
def test_a_killed_worker_is_done_without(plan: str) -> None:
    ended = run_processes(4, f"PLAN, VICTIM = {plan!r}, 2\n{TRAIN}", check=False)
    assert [e.code for e in ended] == [0, 0, -9, 0], [e.err[-800:] for e in ended]
    living = [e.answer for e in ended if e.code == 0]
    assert all(counted and digest == living[0][2] for counted, _, digest in living)
    assert any("rank 2 is gone" in e.err for e in ended)
