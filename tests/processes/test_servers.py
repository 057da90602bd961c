"""Parameter servers between real processes: deaths, and training through them."""

from __future__ import annotations

import pytest

from tests.workers import run_processes

TRAIN = """
import warnings
import tightwire as tw
from tightwire.errors import PeerError
from torch import nn

tw.init(deadline_s=DEADLINE_S)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 3))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
torch.manual_seed(rank)

def step():
    optimizer.zero_grad()
    model(torch.randn(8, 20)).square().mean().backward()
    optimizer.step()

def state():
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    return [float(flat.double().sum()), bool(flat.isfinite().all())]
"""


def run(num_workers: int, plan: str, body: str, *, deadline_s: float = 30.0, check: bool = True) -> list:
    script = f"DEADLINE_S, PLAN = {deadline_s}, {plan!r}\n{TRAIN}\n{body}"
    return run_processes(num_workers, script, timeout_s=180, check=check)


PLANS = [
    "bsp/ps:servers=1",
    "bsp/ps:hierarchical=true,node=2",
    "ssp:2/ps:shards=2/int8+ef",
    "asp:dc=0.04/ps:servers=1,mix=true/topk:0.1+ef",
    "backup:1/ps:servers=2",
    "async-diloco:2,dynamic=true/ps:servers=1,mix=true/int8+ef",
]


def test_trains_counts_and_agrees() -> None:
    body = """
for plan in PLAN.split():
    with tw.attach(model, optimizer, plan) as run:
        for _ in range(0 if run.is_server else 5):
            step()
        is_server = run.is_server
    report = run.report()
    done.append([is_server, *state(), report.sent_bytes == report.planned_bytes > 0])
answer(done)
"""
    by_rank = [end.answer for end in run(4, " ".join(PLANS), f"done = []{body}")]
    for plan, *answers in zip(PLANS, *by_rank, strict=True):
        sums = {total for is_server, total, _, _ in answers if not is_server}
        assert len(sums) == 1, plan
        assert all(is_finite and is_counted for _, _, is_finite, is_counted in answers), plan


def test_a_dead_worker_blocks_nobody() -> None:
    body = """
warnings.simplefilter("always")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    with tw.attach(model, optimizer, PLAN) as run:
        for number in range(0 if run.is_server else 20):
            if rank == 1 and number == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            step()
answer([run.report().steps, [str(w.message) for w in caught]])
"""
    ended = run(4, "ssp:2/ps:servers=1", body, check=False)
    assert [end.code for end in ended] == [0, -9, 0, 0], "".join(end.err for end in ended)
    assert [end.answer[0] for end in ended if end.answer] == [20, 20, 0]
    said = ended[3].answer[1]
    assert len(said) == 1
    assert "lost rank 1" in said[0]


@pytest.mark.parametrize("sign", ["SIGKILL", "SIGSTOP"])
def test_a_dead_server_is_named_within_the_deadline(sign: str) -> None:
    body = f"""
try:
    with tw.attach(model, optimizer, PLAN) as run:
        if run.is_server:
            threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.{sign})).start()
        for _ in range(0 if run.is_server else 100_000):
            last = time.monotonic()
            step()
except PeerError as error:
    answer([list(error.ranks), time.monotonic() - last, str(error)])
"""
    ended = run(3, "asp/ps:servers=1", body, deadline_s=10, check=False)
    for end in ended[:2]:
        assert end.answer, f"{end.code} after {end.seconds:.0f} s: {end.err}"
        ranks, seconds, said = end.answer
        assert ranks == [2], said
        assert seconds < 2 * 10
