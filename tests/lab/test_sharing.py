"""Jobs at once in the lab: when an exchange may begin, and what cannot be measured."""

from pathlib import Path

import pytest

from tests.jobs.test_jobs import write
from tightwire.cli.lab_jobs import lab_jobs
from tightwire.errors import LabError
from tightwire.lab.namespaces import _classes
from tightwire.lab.sharing import WINDOW, phase_wait_s


def test_an_exchange_waits_for_its_turn_and_begins_at_once_when_a_little_late() -> None:
    assert phase_wait_s(3.0, 0.0, 1.0) == 0.0
    assert phase_wait_s(3.0 + WINDOW, 0.0, 1.0) == 0.0
    assert phase_wait_s(3.4, 0.0, 1.0) == pytest.approx(0.6)
    assert phase_wait_s(3.4, 0.5, 1.0) == pytest.approx(0.1)


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
