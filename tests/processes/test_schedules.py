"""Schedules between real processes: means under way change nothing, and ranks that are late block nobody."""

from __future__ import annotations

from tests.workers import run_processes

SCRIPT = """
import random, time
import tightwire as tw
from torch import nn

tw.init(deadline_s=60)
chance = random.Random(rank)

class Slow(nn.Module):
    def forward(self, x):
        if x.requires_grad:
            x.register_hook(lambda g: time.sleep(chance.choice([0, 0.004])))
        return x

def train(plan, wait):
    torch.manual_seed(rank)
    layers = [m for _ in range(4) for m in (nn.Linear(64, 64), Slow(), nn.Tanh())]
    model = nn.Sequential(*layers, nn.Linear(64, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    with tw.attach(model, optimizer, plan) as run:
        for step in range(8):  # the buckets are cut anew after the fourth
            torch.manual_seed(100 * rank + step)
            optimizer.zero_grad()
            model(torch.randn(8, 64)).square().mean().backward()
            if wait:
                run.wait()
            optimizer.step()
    report = run.report()
    assert report.sent_bytes == report.planned_bytes > 0, report
    return torch.cat([p.detach().flatten() for p in model.parameters()])

wrong = []
for plan in PLANS:
    ends = [train(plan, wait) for wait in (False, True)]
    copies = {copy for end in ends for copy in transport.current().exchange(end.numpy().tobytes())}
    if len(copies) != 1:
        wrong.append(plan)
answer(wrong)
"""
# Of two values the sum is the same in either order, so buckets cut by noisy times leave no trace between two ranks.
PLANS = [
    f"bsp/allreduce{way}/none/{schedule}"
    for way, schedule in (
        ("", "mgwfbp"),
        ("", "ascwfbp:3"),
        (":ring", "p3:2KiB"),
        ("", "bytescheduler:4KiB,12KiB"),
        ("", "bytescheduler:4KiB,12KiB,1KiB"),
        ("", "tictac"),
        ("", "pace:8KiB"),
        ("", "dear:16KiB"),
    )
]


def test_overlap_changes_nothing_between_processes() -> None:
    ended = run_processes(2, f"PLANS = {PLANS!r}\n{SCRIPT}", timeout_s=300)
    assert [end.answer for end in ended] == [[]] * 2
