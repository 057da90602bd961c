"""A study between real processes: one start, several trials, each kept; a second run has nothing left to do."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tightwire.study.conduct import conduct
from tightwire.study.results import Results, Trial, Wanted
from tightwire.study.studies import find


def test_trials_are_made_in_the_same_processes_and_kept(tmp_path: Path) -> None:
    study = find("compression").narrowed(
        tasks=("digits",), scenes=("plain",), plans=("none", "bf16"), steps=2
    )
    study = dataclasses.replace(study, workers=2)
    path = tmp_path / "study.json"
    told: list[Trial | Wanted] = []
    found = conduct(study, [0], Results.open(path), told.append)
    assert [type(trial) for trial in told] == [Wanted, Trial, Wanted, Trial]
    dense, half = (found.summary("plain", "digits", plan) for plan in study.plans)
    assert dense.errors == half.errors == ()
    assert dense.bytes_per_step is not None
    assert half.bytes_per_step is not None
    assert 1.9 < dense.bytes_per_step / half.bytes_per_step < 2.1
    told.clear()
    assert conduct(study, [0], Results.open(path), told.append).trials == found.trials
    assert told == []
