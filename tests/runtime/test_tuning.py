"""The schedule auto: it says what it tries, stops by itself, and trains meanwhile."""

from __future__ import annotations

import logging

import pytest

from tests.runtime.training import Net, assert_close, plain, same, sgd, train_all
from tightwire._attach import attach
from tightwire.errors import AttachError
from tightwire.plan import Plan
from tightwire.runtime.tuning import FIRST_STEPS, SETTLING_STEPS, TRIAL_STEPS, _Search
from tightwire.schedule.auto import START
from tightwire.transport import Transport, run_threads

PLAN = "bsp/allreduce/none/auto:4"
STEPS = FIRST_STEPS + (5 + 3) * (SETTLING_STEPS + TRIAL_STEPS) + 2


def test_it_trains_meanwhile_and_ends_with_a_schedule(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="tightwire"):
        first, second = train_all(2, PLAN, steps=STEPS)
    assert same(first.parameters, second.parameters)
    assert_close(first.parameters, plain(2, steps=STEPS), atol=1e-5)
    assert not first.report.plan.endswith("auto:4")
    assert "schedules were tried" in first.report.why[0]
    assert first.report.planned_bytes == first.report.sent_bytes
    assert "trial 1 of at most 5, bytescheduler" in caplog.text


def search(seconds: dict[str, float], otherwise: float, trials: int = 12) -> tuple[str, int]:
    """Lets the search run against given times; returns its choice and after how many trials."""
    found = _Search(Plan.parse(f"bsp/allreduce/none/auto:{trials}"), trials, seed=0)
    told = {"schedule": str(START), "over": False}
    for asked in range(100):
        told = found.answer(str(told["schedule"]), seconds.get(str(told["schedule"]), otherwise))
        if told["over"]:
            return str(told["schedule"]), asked
    pytest.fail("the search did not stop")


def test_the_fastest_wins_and_never_one_slower_than_the_start() -> None:
    assert search({"mgwfbp": 0.5}, 1.0)[0] == "mgwfbp"
    assert search({str(START): 0.5}, 1.0)[0] == str(START)


def test_it_gives_up_early_where_nothing_helps() -> None:
    assert search({}, 1.0, trials=1000)[1] < 15


def test_phases_name_their_schedules() -> None:
    def run(transport: Transport) -> None:
        model = Net()
        with pytest.raises(AttachError, match="has phases"):
            attach(model, sgd(model.parameters()), f"{PLAN}@5~bsp", transport=transport)

    run_threads(2, run, deadline_s=20)
