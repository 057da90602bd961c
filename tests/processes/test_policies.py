"""Between real processes: uneven inputs, evaluation, a worker that is late, and one that leaves between rounds."""

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

# Rank 2 comes to its third step when the others have ended two rounds without it.
model, optimizer = fresh()
past = os.environ["TIGHTWIRE_TEST_PORT_FILE"] + ".past"
with tw.attach(model, optimizer, "diloco:4,quorum=0.6,grace=10ms/allreduce/int8+ef") as run:
    train(model, optimizer, 2 if rank == 2 else 8)
    if rank == 0:
        open(past, "w").close()
    while not os.path.exists(past):
        time.sleep(0.005)
    train(model, optimizer, 6)
report = run.report()
ages = transport.current().exchange(json.dumps(sorted(report.staleness)).encode())
ended = transport.current().exchange(bytes_of(model))
if len(set(ended)) != 1 or report.sent_bytes != report.planned_bytes or max(json.loads(ages[2])) < 1:
    wrong.append("quorum")

model, optimizer = fresh()
with tw.attach(model, optimizer, "local:2") as run:
    train(model, optimizer, 3 if rank == 1 else 8)
    if rank == 1:
        run.leave()
answer([wrong, run.report().workers, sum(bytes_of(model)) if rank != 1 else None, run.step])
"""


def test_joining_out_evaluating_lateness_and_leaving() -> None:
    ended = run_processes(3, TRAIN, timeout_s=300)
    (wrong, *first), (_, *gone), (_, *last) = [end.answer for end in ended]
    assert wrong == []
    assert first == last
    assert first[0] == 2
    assert gone[2] == 3
    assert "rank 1 left" in ended[0].err
