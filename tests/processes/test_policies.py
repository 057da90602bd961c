"""Between real processes: uneven inputs, evaluation, and a worker that leaves between rounds."""

from __future__ import annotations

from tests.workers import run_processes

TRAIN = """
import tightwire as tw
from tightwire.optim import OneBitAdam
from torch import nn

tw.init(deadline_s=30)

def fresh():
    torch.manual_seed(rank)
    model = nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 3))
    return model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

def train(model, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 20)).square().mean().backward()
        optimizer.step()

def bytes_of(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()]).numpy().tobytes()

wrong = []
for plan in ("bsp", "local:2", "delayed:1", "diloco:4/allreduce/int8+ef/streaming:2", "lag:0.1", "gaia:0.1",
             "bsp@2~local:2,state=momenta/allreduce/doublesqueeze+ef"):
    model, optimizer = fresh()
    if "momenta" in plan:
        optimizer = OneBitAdam(model.parameters(), 0.01, weight_decay=0.1)
    with tw.attach(model, optimizer, plan) as run:
        train(model, optimizer, 3)
        with run.evaluating():
            evaluated = transport.current().exchange(bytes_of(model))
        train(model, optimizer, 2 + 3 * rank)
    report = run.report()
    ended = transport.current().exchange(bytes_of(model))
    if len(set(evaluated)) != 1 or len(set(ended)) != 1 or report.sent_bytes != report.planned_bytes:
        wrong.append(plan)

model, optimizer = fresh()
with tw.attach(model, optimizer, "local:2") as run:
    train(model, optimizer, 3 if rank == 1 else 8)
    if rank == 1:
        run.leave()
answer([wrong, run.report().workers, sum(bytes_of(model)) if rank != 1 else None, run.step])
"""


def test_joining_out_evaluating_and_leaving() -> None:
    preload = ("tightwire.runtime", "tightwire.planner", "tightwire.architecture", "tightwire.compression")
    ended = run_processes(3, TRAIN, preload=preload, timeout_s=120)
    (wrong, *first), (_, *gone), (_, *last) = [end.answer for end in ended]
    assert wrong == []
    assert first == last
    assert first[0] == 2
    assert gone[2] == 3
    assert "rank 1 left" in ended[0].err
