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


def test_a_scene_may_have_workers_of_its_own(tmp_path: Path) -> None:
    study = find("compression").narrowed(
        tasks=("digits",), scenes=("plain", "8 workers"), plans=("none",), steps=1
    )
    plain, more = (dataclasses.replace(scene, plans=()) for scene in study.scenes)
    assert (study.workers_in(plain), study.workers_in(more)) == (4, 8)
    study = dataclasses.replace(study, workers=2, scenes=(plain, dataclasses.replace(more, workers=3)))
    found = conduct(study, [0], Results.open(tmp_path / "study.json"), lambda _: None)
    two, three = (found.summary(scene.name, "digits", study.dense).bytes_per_step for scene in study.scenes)
    assert two is not None
    assert three is not None
    assert 1.3 < three / two < 1.37  # a ring sends 2 (n − 1) / n
