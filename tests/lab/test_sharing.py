"""Jobs at once in the lab: when an exchange may begin, and what cannot be measured."""

import json
import time
import types
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.test_jobs import write
from tightwire.cli.lab_jobs import lab_jobs
from tightwire.errors import LabError
from tightwire.lab import Topology, sharing
from tightwire.lab.namespaces import _classes
from tightwire.lab.sharing import WINDOW, SharedJob, phase_wait_s, run_jobs


def test_an_exchange_waits_for_its_turn_and_begins_at_once_when_a_little_late() -> None:
    assert phase_wait_s(3.0, 0.0, 1.0) == 0.0
    assert phase_wait_s(3.0 + WINDOW, 0.0, 1.0) == 0.0
    assert phase_wait_s(3.4, 0.0, 1.0) == pytest.approx(0.6)
    assert phase_wait_s(3.4, 0.5, 1.0) == pytest.approx(0.1)


def test_a_phase_that_cannot_be_kept_is_given_up_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told = json.dumps({"name": "a", "step_s": 1.4, "parted_at": 6})

    class Broken:
        """A lab in which a job misses its turns."""

        def __init__(self, *args: Any, **more: Any) -> None: ...

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *args: Any) -> None: ...

        def set_classes(self, classes: Any, *, equal: bool) -> None:
            assert (classes, equal) == ({0: 0, 2: 0}, True)

        def run(self, argv: Any, on_line: Any, **more: Any) -> Any:
            on_line(types.SimpleNamespace(text=told))
            return types.SimpleNamespace(ok=True)

    monkeypatch.setattr(sharing, "Lab", Broken)
    job = SharedJob(
        name="a", workers=(0, 2), alone_s=1.0, compute_s=0.5, exchange_bytes=8, shift_s=0.0, period_s=1.0
    )
    notes: list[str] = []
    assert run_jobs(Topology.parse("nodes=2x2,inside=1gbit,across=100mbit"), [job], 12, notes.append) == {
        "a": 1.4
    }
    assert "job a could not keep its phase" in notes[0]
    assert "as under fair" in notes[0]


def test_a_job_that_others_hold_up_goes_on_until_a_step_has_settled() -> None:
    job = {"name": "a", "compute_s": 0.0, "shift_s": None, "period_s": 0.0}
    told = sharing._run_steps(job, time.monotonic(), 0.0, lambda is_over: is_over)
    assert told["step_s"] >= 0.0


@pytest.mark.parametrize("steps", [12, 2000])
def test_many_steps_have_the_time_that_they_take(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    limits: list[float] = []

    class Quick:
        """A lab whose command ends at once."""

        def __init__(self, *args: Any, **more: Any) -> None: ...

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *args: Any) -> None: ...

        def run(self, argv: Any, on_line: Any, timeout_s: float) -> Any:
            limits.append(timeout_s)
            on_line(types.SimpleNamespace(text=json.dumps({"name": "a", "step_s": 1.0, "parted_at": None})))
            return types.SimpleNamespace(ok=True)

    monkeypatch.setattr(sharing, "Lab", Quick)
    job = SharedJob(name="a", workers=(0, 1), alone_s=1.0, compute_s=0.5, exchange_bytes=8)
    run_jobs(Topology(workers=2, rate_bytes_per_s=1e6), [job], steps, one_queue=True)
    assert limits[0] >= 2 * steps


def test_jobs_have_equal_shares_of_a_line_or_go_in_order() -> None:
    fair = [line for line in _classes("up0", 12.5e6, {0: 0, 1: 1}, equal=True) if " parent 1:1 " in line]
    assert ["rate 50000000bit ceil 100000000bit prio 0" in line for line in fair] == [True, True]
    first, then = (
        line for line in _classes("up0", 12.5e6, {0: 1, 1: 0}, equal=False) if " parent 1:1 " in line
    )
    assert "rate 1000000bit ceil 100000000bit prio 0" in first
    assert "prio 1" in then


def test_what_the_lab_cannot_measure_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="coflow cannot be measured"):
        lab_jobs(write(tmp_path), ["coflow"])
    with pytest.raises(LabError, match="leave ready_s out"):
        lab_jobs(write(tmp_path, ready_s=0.1), ["fair"], 12, False)
