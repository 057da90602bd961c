"""Studies in which time counts: who waits, how stale steps are, and what is reached in equal time."""

from __future__ import annotations

import dataclasses

import pytest

from tests.study.test_study import trial
from tightwire.errors import LabError
from tightwire.study import report
from tightwire.study.claims import Findings, at_equal_time
from tightwire.study.conduct import wanted
from tightwire.study.results import Results, Trial, Wanted
from tightwire.study.settings import DENSE, settings_for
from tightwire.study.studies import STUDIES, find
from tightwire.study.studies.sync import ahead_at_equal_time, faster, hidden
from tightwire.study.study import ANY, Scene, Study, full_text, split_names
from tightwire.study.task import Place
from tightwire.study.tasks import Digits
from tightwire.study.trial import EmulatedCompute, train
from tightwire.transport import run_threads

SLOW, QUICK = "bsp", "local:2"


def found(*trials: Trial) -> Findings:
    return Findings(Results(None, trials), Digits(), "plain")


@pytest.mark.parametrize(("plan", "stale"), [("adacomm:2", False), ("delayed:1", True), ("asp/ps", True)])
def test_a_trial_tells_the_loss_and_counts_staleness(plan: str, stale: bool) -> None:
    asked = Wanted(scene="plain", task="digits", plan=plan, seed=0, steps=4, settings="")
    first, _ = run_threads(2, lambda t: train(asked, Digits(), Scene(), DENSE["digits"], t), deadline_s=60)
    assert first.steps_per_s is not None
    assert first.steps_per_s > 0
    assert (first.staleness_mean is not None) == stale
    if plan == "delayed:1":
        assert first.staleness_max == 1


def test_one_at_a_time_is_slow() -> None:
    scene = Scene(wait_s=0.5, slow_rank=ANY, slow_share=1.0)
    paces = [EmulatedCompute(scene, Place(rank=rank, workers=3)).waits_s() for rank in range(3)]
    steps = [[next(pace) for pace in paces] for _ in range(50)]
    assert all(sorted(waits) == [0.5, 0.5, 1.5] for waits in steps)
    assert {waits.index(1.5) for waits in steps} == {0, 1, 2}


def test_plans_of_the_study_are_what_the_command_line_makes_of_them() -> None:
    study = find("sync")
    assert [full_text(plan) for plan in study.plans] == list(study.plans)
    assert all(settings_for(task, "delayed/ps") != DENSE[task] for task in ("digits", "text"))


def test_rounds_step_with_the_dense_optimizer_whatever_their_messages_hold_back() -> None:
    sparse = "blocktopk:0.015625,block=4096,values=int2+ef:0.95"
    assert settings_for("text", f"bsp/allreduce/{sparse}") != DENSE["text"]
    assert settings_for("text", f"local:30/allreduce/{sparse}") == DENSE["text"]


def test_scenes_may_be_shorter_and_compare_less() -> None:
    study = find("sync")
    scenes = (Scene(name="whole"), Scene(name="part", length=0.5, plans=study.plans[:2]))
    study = dataclasses.replace(study, scenes=scenes, claims=(), tasks=(Digits(steps=10),))
    asked = wanted(study, [0])
    assert len(asked) == study.trials == len(study.plans) + 2
    assert {w.steps for w in asked if w.scene == "part"} == {5}
    alone = study.narrowed(scenes=("part",), plans=("local:4",), steps=7)
    assert [(w.plan, w.steps) for w in wanted(alone, [0])] == [(study.dense, 7), ("local:4", 7)]
    with pytest.raises(LabError, match="has no scene 'mars'; it has 'whole', 'part'"):
        study.narrowed(scenes=("mars",))
    with pytest.raises(LabError, match="cannot be like this"):
        Scene(length=0.0)


@pytest.mark.parametrize(
    "study", [s for one in STUDIES.values() for s in (one, one.race) if s], ids=lambda s: s.name
)
def test_every_scene_can_be_named_beside_the_others(study: Study) -> None:
    """Names of scenes may hold the commas that separate them."""
    names = tuple(scene.name for scene in study.scenes)
    for order in (names, names[::-1]):
        assert split_names(",".join(order), names) == split_names(", ".join(order), names) == order
    assert split_names("mars,digits", ["digits"]) == ("mars", "digits")


def test_what_is_reached_in_equal_time() -> None:
    curve = ((1.0, 5, 0.5), (3.0, 10, 0.9))
    results = found(
        trial(SLOW, 0, 0.9, seconds=3.0, curve=curve, exposed_s=(0.1, 0.1), steps_per_s=4.0),
        trial(QUICK, 0, 0.8, seconds=1.5, exposed_s=(0.0, 0.01), steps_per_s=8.0),
        trial(SLOW, 1, 0.9, seconds=3.0, curve=((2.0, 5, 0.5),), exposed_s=(0.1, 0.1), steps_per_s=4.0),
        trial(QUICK, 1, 0.8, seconds=1.5, exposed_s=(0.0, 0.01), steps_per_s=8.0),
    )
    assert at_equal_time(results, SLOW) == {0: 0.5, 1: None}
    assert at_equal_time(results, QUICK) == {0: 0.8, 1: 0.8}
    assert ahead_at_equal_time(QUICK, SLOW)(results).holds is True
    assert ahead_at_equal_time(SLOW, QUICK)(results).holds is None
    assert faster(QUICK, SLOW, 2.0)(results).holds is True
    assert faster(QUICK, SLOW, 2.1)(results).holds is False
    assert hidden(QUICK, SLOW, 0.1)(results).holds is True
    assert hidden("delayed:1", SLOW, 0.1)(results).holds is None


def test_the_report_tells_of_waiting_and_staleness_where_time_counts() -> None:
    study = Study(
        name="timed",
        about="what?",
        workers=2,
        plans=(SLOW, QUICK),
        dense=SLOW,
        tasks=(Digits(steps=10),),
        scenes=(Scene(name="plain", wait_s=0.1, length=0.5, snapshots=2),),
    )
    more = {"seconds": 2.0, "exposed_s": (0.1, 0.3), "staleness_mean": 1.25, "staleness_max": 3}
    results = Results(None, [trial(SLOW, 0, 0.9, **more), trial(QUICK, 0, 0.8, seconds=1.0)])
    page = report.markdown(study, results)
    assert "after 5 steps" in page
    assert all(cell in page for cell in (" 200.0 ", " 300.0 ", " 1.25 ", " 3 ", "at equal time"))
    assert len({len(line) for line in page.splitlines() if line.startswith("|")}) == 1
