"""Scripts as people write them: equal to DDP where nothing is lost; else trained, or refused in a sentence."""

from __future__ import annotations

import json

from tests.workers import run_processes
from tightwire.bench.scripts import PLANS, SCRIPTS, ScriptRow
from tightwire.plan import Plan

QUICK = ("lstm", "gan", "lbfgs", "lora", "sam", "muon")
FEW = ("bsp", "bsp/allreduce:ring/none/p3", "bsp/allreduce/int8+ef", "local:2")


def test_a_few_scripts_under_plans_of_several_families() -> None:
    job = json.dumps({"scripts": QUICK, "plans": FEW, "workers": 2})
    script = f"from tightwire.bench.scripts.worker import main\nmain({job!r})"
    first, _ = run_processes(2, script, timeout_s=120)
    rows = [ScriptRow(**json.loads(line)) for line in first.out.splitlines() if line.startswith("{")]
    verdicts = {(row.script, row.plan): row.verdict for row in rows}
    assert len(rows) == len(QUICK) * len(FEW)
    assert "wrong" not in verdicts.values(), [row for row in rows if row.verdict == "wrong"]
    assert all(verdicts[name, "bsp"] == "equal" for name in QUICK)
    refused = {pair for pair, verdict in verdicts.items() if verdict == "refused"}
    assert refused == {("lbfgs", "bsp/allreduce:ring/none/p3"), ("lbfgs", "bsp/allreduce/int8+ef")}


def test_every_family_is_there() -> None:
    assert len(SCRIPTS) >= 12
    plans = [Plan.parse(plan) for plan in PLANS]
    assert {plan.architecture.name for plan in plans} == {"allreduce", "ps", "gossip"}
    assert len({plan.sync.name for plan in plans}) >= 7
