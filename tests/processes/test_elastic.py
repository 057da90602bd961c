"""Law 12 over real processes: torchft's lighthouse, Gloo, SIGKILL and SIGTERM."""

from __future__ import annotations

import pytest

from tests.workers import run_processes

TRAIN = """
from tightwire.transport import lighthouse
import tightwire as tw
place = os.environ["TIGHTWIRE_TEST_PORT_FILE"] + ".lighthouse"
if rank == 0:
    server = lighthouse.serve("127.0.0.1:0", dead_ms=3000, join_ms=1500)
    with open(place + ".tmp", "w") as file:
        file.write(server.address().rpartition(":")[2])
    os.rename(place + ".tmp", place)
while not os.path.exists(place):
    time.sleep(0.01)
os.environ["TORCHFT_LIGHTHOUSE"] = "http://127.0.0.1:" + open(place).read()
def train(plan, steps, at_step):
    tw.init(elastic=True, min_workers=size - 1, deadline_s=10)
    torch.manual_seed(rank)
    model = torch.nn.Linear(8, 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    with tw.attach(model, optimizer, plan) as run:
        while run.step < steps:
            at_step(run)
            optimizer.zero_grad()
            model(torch.randn(4, 8)).square().mean().backward()
            time.sleep(0.02)
            optimizer.step()
    answer([run.transport.size, [round(p.double().sum().item(), 12) for p in model.parameters()]])
"""


@pytest.mark.parametrize(
    ("plan", "steps"),
    [
        ("bsp/allreduce:ring", 120),
        ("diloco:4", 320),  # it steps on for the 3 s that pass until the death is noticed
        ("ssp:0/ps", 120),
        ("auto", 200),
    ],
)
def test_one_is_killed_one_is_told_to_leave_and_one_comes(plan: str, steps: int) -> None:
    """Of four, the last comes late, the third dies, the second leaves: two go on, equal to the bit."""
    ended = run_processes(
        4,
        TRAIN
        + f"""
def at_step(run):
    if rank == 2 and run.step >= 8:  # it may come late
        os.kill(os.getpid(), signal.SIGKILL)
    if rank == 1 and run.step >= 40 and run.transport.size == 3:  # local methods step on until a death is noticed
        os.kill(os.getpid(), signal.SIGTERM)
if rank == 3:
    time.sleep(1)
train({plan!r}, {steps}, at_step)
""",
        join=False,
        check=False,
        timeout_s=180,
    )
    assert [end.code for end in ended] == [0, 0, -9, 0], "\n".join(end.err for end in ended)
    assert ended[1].answer is None
    assert ended[0].answer == ended[3].answer
    assert ended[0].answer[0] == 2
