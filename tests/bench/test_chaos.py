"""The campaign of faults: what it draws, how it judges, and a small one."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from tightwire.bench.chaos import Campaign, draw
from tightwire.bench.chaos.arena import Ended, Ending
from tightwire.bench.chaos.campaign import TrialOutcome, judge
from tightwire.bench.chaos.faults import ELASTIC, FAMILIES, LOCAL_FAULTS
from tightwire.bench.chaos.page import summary, tables, timeline
from tightwire.bench.chaos.worker import ChaosTrial


def test_a_seed_draws_every_plan_and_every_fault_alike() -> None:
    campaign = Campaign(count=len(FAMILIES) * len(LOCAL_FAULTS), seed=3)
    trials = list(draw(campaign))
    assert trials == list(draw(campaign))
    assert trials != list(draw(Campaign(count=campaign.count, seed=4)))
    assert {trial.label for trial in trials if not trial.elastic} == {*FAMILIES}
    assert {trial.plan for trial in trials if trial.elastic} <= {*ELASTIC}
    assert {trial.fault for trial in trials} == set(LOCAL_FAULTS)
    served = [trial for trial in trials if "servers=1" in trial.plan]
    assert all((trial.victim == 2) == trial.fault.endswith("-server") for trial in served)
    assert {trial.victim for trial in trials if trial.fault == "kill-host"} == {0}


def test_of_plans_that_change_half_are_struck_where_they_do() -> None:
    plans = ("local:3@8~bsp", "bsp/gossip:ring@5~delayed:1@11~bsp", "auto")
    campaign = Campaign(plans=plans[:1], elastic=plans[1:], faults=("kill", "pause"), count=120)
    trials = list(draw(campaign))
    assert {trial.label for trial in trials} == {plans[0], *(f"{plan}, elastic" for plan in plans[1:])}
    for plan, changes in zip(plans, ({7}, {4, 10}, {1, 2}), strict=True):
        struck = [trial.at_step for trial in trials if trial.plan == plan]
        assert changes <= set(struck)
        assert 10 < sum(step in changes for step in struck) < 35


def ended(end: str = "finished", code: int | None = 0, **more: Any) -> Ended:
    return Ended(code=code, end={"end": end, "steps": 24, **more}, seconds=1.0, error="")


def trial_of(plan: str, fault: str) -> ChaosTrial:
    return ChaosTrial(
        plan=plan, fault=fault, victim=1, at_step=5, moment=0.5, workers=3, steps=24, step_s=0.0, deadline_s=4.0,
        late_s=60.0,
    )  # fmt: skip


def found(plan: str, fault: str, *workers: Ended) -> list[int]:
    """Returns how many hangs, wrong names and divergences are found where rank 1 is the victim."""
    outcome = judge(trial_of(plan, fault), Ending(workers=workers, leftovers=()), 1.0)
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
    assert found("bsp/gossip:ring@9~bsp", "kill", right, killed, right) == [0, 0, 0]
    assert found("bsp@5~bsp/gossip:ring", "kill", ended(), killed, ended()) == [
        0,
        0,
        0,
    ]  # struck at the change
    assert found("bsp@6~bsp/gossip:ring", "kill", ended(), killed, ended()) == [0, 2, 0]
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


def test_who_was_struck_after_it_had_joined_may_be_done_without() -> None:
    """The moment is drawn, and a fast host joins sooner."""
    workers = (ended(), ended(code=-9), ended())
    for has_attached, wrong in ((False, 2), (True, 0)):
        ending = Ending(workers=workers, leftovers=(), has_attached=has_attached)
        assert len(judge(trial_of("bsp/gossip:ring", "kill-joining"), ending, 1.0).wrong_names) == wrong


def test_what_workers_wrote_is_kept_where_a_trial_ended_wrong() -> None:
    for code in (0, None):
        last = Ended(
            code=code, end={"end": "finished", "steps": 24}, seconds=1.0, error="", log=("12:00 lost",)
        )
        outcome = judge(trial_of("bsp/gossip:ring", "kill"), Ending(workers=(last,) * 3, leftovers=()), 1.0)
        assert outcome.logs == (() if code == 0 else (("12:00 lost",),) * 3)


def test_who_is_named_too_late_is_judged_as_a_hang() -> None:
    for seconds, hangs in ((4.0 + 9.9, 0), (4.0 + 10.1, 2)):  # of a deadline of 4 s
        right = ended("PeerError", 1, ranks=[1], error="rank 1 died while", ended_s=100.0 + seconds)
        ending = Ending(workers=(right, ended(code=-9), right), leftovers=(), struck_s=100.0)
        outcome = judge(trial_of("bsp", "kill"), ending, 1.0)
        assert (len(outcome.hangs), outcome.wrong_names) == (hangs, ())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_campaign_leaves_nothing(number: signal.Signals, tmp_path: pathlib.Path) -> None:
    """One run on this host's loopback and one on hosts of the lab; SIGINT comes to the whole group, as by Ctrl-C."""
    mark = f"TIGHTWIRE_TEST={tmp_path}"
    # Whoever starts tests in the background may have them, and all that they start, ignore SIGINT.
    campaign = subprocess.Popen(
        ["env", "--default-signal=INT", sys.executable, "-m", "tightwire", "bench", "chaos", "--plans", "bsp",
         "--faults", "slow loss", "--count", "2", "--at-once", "2", "--workers", "2", "--deadline", "20",
         "--large", "0"],
        env=os.environ | dict([mark.split("=", 1)]) | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0,
    )  # fmt: skip
    while len(list(tmp_path.glob("tightwire-chaos-*/started0"))) < 2:
        assert campaign.poll() is None, "it ended by itself"
        time.sleep(0.02)
    assert len(marked(mark)) >= 1 + 2 + 4  # the campaign, its lanes, their workers
    if number == signal.SIGINT:
        os.killpg(campaign.pid, number)
    else:
        campaign.send_signal(number)
    assert campaign.wait(60) != 0
    ends_s = time.monotonic() + 10
    while left := marked(mark):
        assert time.monotonic() < ends_s, left
        time.sleep(0.02)
    assert list(tmp_path.glob("tightwire*")) == []  # others', as PyTorch's cache, may stay


def marked(mark: str) -> list[str]:
    """Returns the commands of processes that were started with a variable, and what they started."""
    found = []
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark.encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_bytes().decode())
    return found


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


def test_tables_count_by_plan_and_by_fault_and_tell_what_ended_wrong() -> None:
    right, wrong = trial_of("bsp", "kill"), trial_of("local:4", "kill")
    outcomes = [
        TrialOutcome(trial=right, goodput=0.5),
        TrialOutcome(trial=wrong, goodput=1.0, wrong_names=("rank 0 finished and said nothing of rank 1",)),
    ]
    page = tables(summary(outcomes))
    assert "2 runs, each broken once" in page
    assert "0 hung, 1 named nobody or the wrong one, 0 ended with replicas apart" in page
    for row in ("`bsp` | 1 | 50.0 % | 0", "`local:4` | 1 | 100.0 % | 1", "`kill` | 2 | 75.0 % | 1"):
        assert f"| {row} |" in page
    assert "- `local:4`, kill of rank 1: rank 0 finished and said nothing of rank 1" in page


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
        "--out",
        str(tmp_path / "chaos.json"),
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
    assert json.loads((tmp_path / "chaos.json").read_text()) == summary
    assert "## By fault" in (tmp_path / "chaos.md").read_text()
