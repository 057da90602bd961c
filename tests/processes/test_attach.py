"""attach between real processes: the same training as stock DDP, and nobody waits for the dead."""

from __future__ import annotations

import pytest

from tests.workers import run_processes

# The same model and data under stock DDP and under attach; answers with the largest difference.
COMPARE = """
import copy
import tightwire as tw
from torch import nn

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.mix = nn.Linear(6, 6)
        self.out = nn.Linear(6, 11, bias=False)
        self.out.weight = self.embed.weight
    def forward(self, x):
        return self.out(torch.tanh(self.mix(self.embed(x))))

def tied_data(step):
    g = torch.Generator().manual_seed(100 * step + rank)
    return torch.randint(0, 11, (8,), generator=g), torch.randint(0, 11, (8,), generator=g)

def pictures():
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 4))

def picture_data(step):
    g = torch.Generator().manual_seed(100 * step + rank)
    return torch.randn(6, 3, 6, 6, generator=g), torch.randint(0, 4, (6,), generator=g)

def train(model, forward, data, optimizer):
    for step in range(10):
        x, y = data(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(forward(x), y).backward()
        optimizer.step()

OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
}
tw.init(deadline_s=20)
torch.manual_seed(rank)  # attaching and DDP both take rank 0's
differences = {}
for name, make, data in (("tied", Tied, tied_data), ("pictures", pictures, picture_data)):
    for optimizer, made in OPTIMIZERS.items():
        stock = make()
        ours = {plan: copy.deepcopy(stock) for plan in PLANS}
        ddp = nn.parallel.DistributedDataParallel(stock)
        train(stock, ddp, data, made(ddp.parameters()))
        for plan, model in ours.items():
            optim = made(model.parameters())
            with tw.attach(model, optim, plan) as run:
                train(model, model, data, optim)
            report = run.report()
            assert report.sent_bytes == report.planned_bytes > 0, report
            differences[f"{name} {optimizer} {plan}"] = max(
                float((a - b).detach().abs().max()) for a, b in zip(stock.parameters(), model.parameters())
            )
tw.shutdown()
answer(differences)
"""


def test_training_equals_stock_ddp() -> None:
    plans = ["bsp", "bsp/allreduce:ring", "bsp/allreduce:recursive-doubling/none/fusion:1KB"]
    for end in run_processes(3, f"PLANS = {plans}\n" + COMPARE):
        assert len(end.answer) == 4 * len(plans)
        assert max(end.answer.values()) < 1e-6, end.answer


# A worker is lost in its fourth step; the others say whom they miss.
LOSE = """
import tightwire as tw
from tightwire.errors import PeerError
tw.attach, tw.Plan.parse(PLAN)  # loaded before the clock runs: this machine may be busy
dist.barrier()
tw.init(deadline_s=4)
model = torch.nn.Sequential(torch.nn.Linear(50, 50), torch.nn.Linear(50, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
try:
    with tw.attach(model, optimizer, PLAN) as run:
        for step in range(8):
            if step == 3 and rank == 1:
                os.kill(os.getpid(), signal.Signals[SIGNAL])
            optimizer.zero_grad()
            model(torch.ones(2, 50)).sum().backward()
            optimizer.step()
            lost_at = time.monotonic()
except PeerError as error:
    answer({"ranks": error.ranks, "step": run.step, "waited_s": time.monotonic() - lost_at})
"""


@pytest.mark.parametrize(
    ("plan", "signal"),
    [("bsp/allreduce:ring", "SIGKILL"), ("bsp", "SIGSTOP"), ("local:2", "SIGSTOP")],
)
def test_a_lost_worker_is_named_within_the_deadline(plan: str, signal: str) -> None:
    ends = run_processes(3, f"PLAN, SIGNAL = {plan!r}, {signal!r}\n" + LOSE, check=False, timeout_s=30)
    for rank in (0, 2):
        assert ends[rank].answer is not None, ends[rank].err
        assert ends[rank].answer["ranks"] == [1]
        assert ends[rank].answer["step"] in (3, 4)
        assert ends[rank].answer["waited_s"] < 4 + 2 + 3  # the deadline, the roll call, a busy machine
        assert ends[rank].code == 0, ends[rank].err


def test_ranks_that_disagree_all_say_so() -> None:
    script = """
    import tightwire as tw
    from tightwire.errors import MismatchError
    tw.init(deadline_s=10)
    model = torch.nn.Linear(3, 2 + (rank == 2))
    try:
        tw.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), "bsp")
    except MismatchError as error:
        answer(str(error))
    tw.shutdown()
    """
    messages = {end.answer for end in run_processes(3, script)}
    assert len(messages) == 1
    assert "parameter weight: ranks 0 and 1 have [2, 3] torch.float32; rank 2 has [3, 3]" in messages.pop()
