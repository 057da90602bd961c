"""Plans that go on without a worker go on without one that is stopped, as they do without one that was killed."""

from __future__ import annotations

import pytest

from tests.workers import run_processes

TRAIN = """
import tightwire
tightwire.init(deadline_s=2)
torch.manual_seed(0)
model = torch.nn.Linear(8, 2)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
with tightwire.attach(model, optimizer, PLAN) as run:
    for step in range(0 if run.is_server else 20):
        if step == 7 and rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        optimizer.zero_grad()
        model(torch.ones(2, 8)).sum().backward()
        optimizer.step()
answer([round(float(p.detach().sum()), 5) for p in model.parameters()])
"""


@pytest.mark.parametrize(
    "plan", ["bsp/gossip:ring", "asp/gossip:ad-psgd", "asp/ps:servers=1", "ssp:2/ps:servers=1"]
)
def test_others_go_on_without_a_stopped_worker(plan: str) -> None:
    ended = run_processes(
        4,
        f"PLAN = {plan!r}\n{TRAIN}",
        check=False,
    )
    others = [end for rank, end in enumerate(ended) if rank != 1]
    assert [end.code for end in others] == [0, 0, 0], [end.err for end in others]
    trained = others[:2] if "servers" in plan else others
    assert len({str(end.answer) for end in trained}) == 1


KILLED = """
import tightwire
tightwire.init(deadline_s=4)
model = torch.nn.Linear(8, 2)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
with tightwire.attach(model, optimizer, "diloco:4,quorum=0.5,grace=10ms") as run:
    for step in range(4):
        if step == 2 and rank == 1:
            time.sleep(4)
            os.kill(os.getpid(), signal.SIGKILL)
        optimizer.zero_grad()
        model(torch.ones(2, 8)).sum().backward()
        optimizer.step()
"""


def test_one_that_is_killed_while_others_rest_until_it_comes_is_named() -> None:
    """Under a quorum they are in no round then that its death would end."""
    first, _, third = run_processes(3, KILLED, check=False, timeout_s=60)
    for end in (first, third):
        assert end.code == 1, end.err
        assert "rank 1 died" in end.err
