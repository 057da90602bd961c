"""Equal-time comparisons: twelve jobs that learn, results that are resumed, verdicts that are right."""

from __future__ import annotations

import pathlib
from dataclasses import replace

import pytest
import torch

from tightwire.errors import FileError
from tightwire.study import equal_time
from tightwire.study.equal_time import Kept, asked, cells, markdown, verdicts
from tightwire.study.jobs import JOBS
from tightwire.study.task import Place
from tightwire.study.timed import TimedTrial


def test_there_are_twelve() -> None:
    assert len(JOBS) == 12


@pytest.mark.parametrize("name", JOBS)
def test_every_job_can_be_learnt_and_judged(name: str) -> None:
    one, other = (JOBS[name].replica(Place(rank=rank, workers=4)) for rank in (0, 1))
    assert all(
        torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True)
    )
    batch = one.batch()
    assert not torch.equal(batch[0], other.batch()[0])
    one.loss(one.model, tuple(t[:2] for t in batch)).backward()
    assert all(p.grad is not None for p in one.model.parameters())


def trial(who: str, loss: float, reached: float, job: str = "lstm") -> TimedTrial:
    curve = ((reached / 2, 1, 4.0), (reached, 2, 2.0), (40.0, 3, loss))
    return TimedTrial(
        job=job,
        rate_bytes_per_s=25e6,
        seconds=40.0,
        contestant=who,
        loss=loss,
        curve=curve,
        steps=3,
        plan=who,
    )


def test_the_time_to_a_loss_is_between_points() -> None:
    assert trial("ddp", 2.0, 20.0).first_at(3.0) == 15.0
    assert trial("ddp", 2.0, 20.0).first_at(1.0) is None


def test_one_moment_does_not_decide_who_is_behind() -> None:
    lucky = replace(trial("ddp", 1.0, 20.0), curve=((31.0, 1, 2.0), (36.0, 2, 2.0), (40.0, 3, 1.0)))
    steady = replace(trial("auto-lossy", 1.2, 20.0), curve=((20.0, 1, 9.0), (31.0, 2, 1.5), (40.0, 3, 1.2)))
    assert "auto-lossy: behind stock DDP at equal time in 0 of 1." in verdicts(cells([lucky, steady]))
    never = replace(steady, curve=((31.0, 1, None), (40.0, 2, 1.2)))
    assert "lstm at 200 Mb/s (+inf%)" in verdicts(cells([lucky, never]))[0]


def test_nothing_is_said_beside_stock_ddp_that_diverged() -> None:
    sound = trial("ddp", 2.0, 40.0)
    broken = replace(sound, seed=1, loss=None, curve=((20.0, 1, 4.0), (40.0, 2, None)))
    rows = cells([sound, broken, trial("auto-lossy", 1.2, 20.0)])
    assert [(row["over_ddp"], row["spread"], row["to_ddp_loss_s"]) for row in rows] == [(None,) * 3] * 2
    assert verdicts(rows) == []


def test_verdicts_say_who_is_behind() -> None:
    by_hand = equal_time.BY_HAND[0]
    rows = cells(
        [
            trial("ddp", 2.0, 40.0),
            trial(by_hand, 1.5, 10.0),
            trial("auto-lossy", 2.2, 20.0),
            trial("race-stale", 1.5, 11.0),
        ]
    )
    said = verdicts(rows)
    assert "auto-lossy: behind stock DDP at equal time in 1 of 1: lstm at 200 Mb/s (+10.0%)." in said
    assert "race-stale: behind stock DDP at equal time in 0 of 1." in said
    assert any("1.10 × that of the best plan" in sentence for sentence in said)
    assert "| lstm | race-stale |" in markdown(rows, 4)


def test_what_was_made_is_not_made_again(tmp_path: pathlib.Path) -> None:
    wanted = asked(["lstm"], [25e6], ["ddp", "bsp"], 40.0, [0])
    kept = Kept(tmp_path / "race.json", 4)
    kept.add(trial("ddp", 2.0, 20.0))
    kept.add(replace(trial("bsp", 2.0, 20.0), error="failed"))
    again = Kept(tmp_path / "race.json", 4)
    assert [t.contestant for t in again.missing(wanted)] == ["bsp"]
    assert len(again.of(wanted)) == 2
    with pytest.raises(FileError, match="holds trials of 4 workers, and these are of 8"):
        Kept(tmp_path / "race.json", 8)
    (tmp_path / "race.json").write_text('{"cells": []}')
    with pytest.raises(FileError, match="cannot be read as such"):
        Kept(tmp_path / "race.json", 4)
