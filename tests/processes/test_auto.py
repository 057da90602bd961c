"""plan="auto" between real processes: measured, chosen alike on all ranks, and reported."""

from __future__ import annotations

import pytest

from tests.workers import run_processes

TRAIN = """
import tightwire as tw
from tightwire.runtime.first_steps import BASELINE_STEPS, PROFILE_STEPS, WARM_UP_STEPS
from torch import nn

tw.init(deadline_s=60)
torch.manual_seed(rank)
model = nn.Sequential(nn.Linear(16, 300), nn.ReLU(), nn.Linear(300, 4))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
hooks = len(optimizer._optimizer_step_post_hooks)
with tw.attach(model, optimizer, plan="auto", allow=ALLOW) as run:
    for _ in range(WARM_UP_STEPS + PROFILE_STEPS + BASELINE_STEPS + 3):
        optimizer.zero_grad()
        model(torch.randn(8, 16)).square().mean().backward()
        optimizer.step()
report = run.report()
answer([
    report.plan, report.why, report.baseline_step_s is not None, report.predicted_step_s is not None,
    report.sent_bytes == report.planned_bytes, len(optimizer._optimizer_step_post_hooks) == hooks,
    [p.flatten().tolist() for p in model.parameters()],
])
"""


@pytest.mark.parametrize("allow", ["lossless", "lossy"])
def test_auto_measures_chooses_and_tells(allow: str) -> None:
    ended = run_processes(2, TRAIN.replace("ALLOW", repr(allow)))
    plan, why, *facts, parameters = ended[0].answer
    assert why, plan
    assert facts == [True] * 4
    assert ended[1].answer[0] == plan
    assert ended[1].answer[-1] == parameters
