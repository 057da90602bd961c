"""The campaign of faults: what it draws, how it judges, and a small one."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from typing import Any

from tightwire.bench.chaos import Campaign, draw
from tightwire.bench.chaos.arena import Ended, Ending
from tightwire.bench.chaos.campaign import TrialOutcome, judge
from tightwire.bench.chaos.faults import ELASTIC, FAMILIES, LOCAL_FAULTS
from tightwire.bench.chaos.page import timeline
from tightwire.bench.chaos.worker import ChaosTrial


def test_a_seed_draws_every_plan_and_every_fault_alike() -> None:
    campaign = Campaign(count=len(FAMILIES) * len(LOCAL_FAULTS), seed=3)
    trials = list(draw(campaign))
    assert trials == list(draw(campaign))
    assert trials != list(draw(Campaign(count=campaign.count, seed=4)))
    assert {trial.plan for trial in trials} == {*FAMILIES, *ELASTIC}
    assert {trial.fault for trial in trials} == set(LOCAL_FAULTS)
    served = [trial for trial in trials if "servers=1" in trial.plan]
    assert all((trial.victim == 2) == trial.fault.endswith("-server") for trial in served)
    assert {trial.victim for trial in trials if trial.fault == "kill-host"} == {0}


def ended(end: str = "finished", code: int | None = 0, **more: Any) -> Ended:
    return Ended(code=code, end={"end": end, "steps": 24, **more}, seconds=1.0, error="")


def found(plan: str, fault: str, *workers: Ended) -> list[int]:
    """Returns how many hangs, wrong names and divergences are found where rank 1 is the victim."""
    trial = ChaosTrial(
        plan=plan, fault=fault, victim=1, at_step=5, moment=0.5, workers=3, steps=24, step_s=0.0, deadline_s=4.0,
        late_s=60.0,
    )  # fmt: skip
    outcome = judge(trial, Ending(workers=workers, leftovers=()), 1.0)
    return [len(outcome.hangs), len(outcome.wrong_names), len(outcome.divergences)]


def test_ends_are_judged() -> None:
    killed, right = ended(code=-9), ended("PeerError", 1, ranks=[1], error="rank 1 died while")
    assert found("bsp", "kill", right, killed, right) == [0, 0, 0]
    assert found("bsp", "kill", ended("PeerError", 1, ranks=[2], error="rank 2 died"), killed, right) == [
        0,
        1,
        0,
    ]
    assert found("bsp", "kill", ended("RuntimeError", 1, error="Broken pipe"), killed, right) == [0, 1, 0]
    assert found("bsp", "kill", ended("PeerError", -6, ranks=[1]), killed, right) == [0, 1, 0]
    assert found("bsp", "kill", ended(code=None), killed, right)[0] == 1
    assert found("bsp", "freeze", right, ended(code=None), right) == [0, 0, 0]
    assert found("bsp/gossip:ring", "kill", ended(), killed, ended()) == [0, 0, 0]
    assert found("bsp/gossip:ring", "kill", right, killed, ended()) == [0, 1, 0]
    assert found("bsp", "pause", right, ended(), right) == [0, 2, 0]
    assert found("bsp", "slow", *(ended(digest=text) for text in "aab")) == [0, 0, 1]
    assert found("bsp", "nan", *(ended(digest="a", finite=finite) for finite in (True, True, False))) == [
        0,
        0,
        1,
    ]
    assert found("bsp", "thaw", right, ended("PeerError", 1, ranks=[1], error="gave up"), right) == [0, 1, 0]
    told = ended("MismatchError", 1, error="plan: ranks 0 and 2 have bsp; rank 1 has local:3.")
    assert found("bsp", "other-plan", told, told, told) == [0, 0, 0]


def test_a_victim_says_that_the_disk_is_full() -> None:
    right = ended("PeerError", 1, ranks=[1], error="rank 1 failed: FileError: trace.json cannot be written")
    assert found("bsp", "full-disk", right, ended("FileError", 1), right) == [0, 0, 0]
    assert found("bsp", "full-disk", right, ended("OSError", 1), right) == [0, 1, 0]


def test_runs_side_by_side_have_lanes_of_their_own() -> None:
    trial = next(draw(Campaign(count=1)))
    spans = [(0, 5), (1, 3), (3, 6), (5, 8)]
    outcomes = [TrialOutcome(trial=trial, seconds=end - start, end_s=end) for start, end in spans]
    bars = timeline(outcomes, "").data[2]
    assert list(bars.y) == [0, 1, 1, 0]


def test_a_small_campaign(tmp_path: pathlib.Path) -> None:
    page = tmp_path / "page.html"
    arguments = [
        "--plans",
        "bsp local:4 bsp/gossip:ring",
        "--faults",
        "kill raise thaw full-disk kill-server",
        "--count",
        "5",
        "--page",
        str(page),
        "--deadline",
        "2",
    ]
    run = subprocess.run(
        [sys.executable, "-m", "tightwire", "bench", "chaos", *arguments, "--seed", "5", "--json"],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    summary = json.loads(run.stdout.splitlines()[-1])
    assert run.returncode == 0, run.stderr
    assert (summary["faults"], summary["found"]) == (5, [])
    assert [summary[what] for what in ("hangs", "wrong_names", "divergences", "leftovers")] == [0] * 4
    assert "5 faults, seed 5: 0 ended wrong" in page.read_text()
