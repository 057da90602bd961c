"""Studies: what is asked, kept, counted and claimed. The studies themselves are `tightwire study`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from tightwire.compression import MEMBERS, Codec
from tightwire.errors import FileError, LabError, PlanError
from tightwire.plan import Plan
from tightwire.study import report
from tightwire.study.claims import Claim, Findings, all_of, fewer_bytes, no_worse, same, within, worse
from tightwire.study.conduct import wanted
from tightwire.study.results import Results, Trial, Wanted
from tightwire.study.settings import DENSE, TrainingSettings, settings_for
from tightwire.study.studies import STUDIES, find
from tightwire.study.study import STOCK, TASKS, Scene, Study, full_text
from tightwire.study.task import Place, Task
from tightwire.study.tasks import Digits, Images, Language
from tightwire.study.trial import train, warm_up
from tightwire.transport import run_threads

PLAIN, HALF = full_text("none"), full_text("topk:0.5+ef")


def trial(plan: str, seed: int, metric: float | None, **more: object) -> Trial:
    row = {"scene": "plain", "task": "digits", "steps": 10, "settings": "s", "plan": plan, "seed": seed}
    return Trial(**row | more, metric=metric)  # type: ignore[arg-type]


def findings(*trials: Trial) -> Findings:
    return Findings(Results(None, trials), Digits(), "plain")


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_replicas_begin_alike_and_learn_from_other_data(task: Task) -> None:
    first, second = (task.replica(Place(rank=rank, workers=2, seed=3)) for rank in (0, 1))
    other = task.replica(Place(rank=0, workers=2, seed=4))
    weights = [[p.detach() for p in replica.model.parameters()] for replica in (first, second, other)]
    assert all(map(torch.equal, weights[0], weights[1]))
    assert not all(map(torch.equal, weights[0], weights[2]))
    assert not torch.equal(first.batch()[0], second.batch()[0])
    assert first.judge() == second.judge()


def test_unlike_shares_are_of_a_kind_and_none_is_lost() -> None:
    from tightwire.study.digits import read, share

    labels = read().train_labels
    unlike = [share(labels, Place(rank=r, workers=4, split="unlike")) for r in range(4)]
    alike = [share(labels, Place(rank=r, workers=4)) for r in range(4)]
    assert max(labels[mine].unique().numel() for mine in unlike) <= 4
    assert min(labels[mine].unique().numel() for mine in alike) == 10
    for shares in (unlike, alike):
        assert torch.equal(torch.cat(shares).sort().values, torch.arange(len(labels)))


@pytest.mark.parametrize(
    "task", [Digits(steps=3), Images(steps=3), Language(steps=3)], ids=lambda task: task.name
)
@pytest.mark.parametrize("plan", [PLAIN, "local:2"])
def test_a_trial_counts_what_was_sent(task: Task, plan: str) -> None:
    asked = Wanted(scene="curve", task=task.name, plan=plan, seed=0, steps=3, settings="")
    scene = Scene(name="curve", snapshots=3)
    first, second = run_threads(2, lambda t: train(asked, task, scene, DENSE[task.name], t))
    numel = sum(p.numel() for p in task.replica(Place(rank=0, workers=2)).model.parameters())
    assert first.wanted == asked
    assert first.rounds == (3 if plan == PLAIN else 2)
    assert first.bytes_per_step == second.bytes_per_step
    assert 4 * numel * first.rounds / 3 == pytest.approx(first.bytes_per_step, rel=0.01)
    assert first.metric is not None
    assert second.metric is None
    assert [step for _, step, _ in first.curve] == [1, 2, 3]


def test_the_same_trial_gives_the_same_metric() -> None:
    asked = Wanted(scene="plain", task="digits", plan=HALF, seed=1, steps=4, settings="")
    once, again = (
        run_threads(2, lambda t: train(asked, Digits(), Scene(), DENSE["digits"], t))[0] for _ in range(2)
    )
    assert once.metric == again.metric


def test_muon_has_matrices_and_adamw_the_rest_at_a_share_of_its_rate() -> None:
    settings = settings_for("text", "muloco:32,outer_momentum=0.6/allreduce/none/sequential")
    replica = Language().replica(Place(rank=0, workers=1))
    muon, beside = settings.build(replica.model.parameters())
    assert {p.ndim for group in muon.param_groups for p in group["params"]} == {2}
    assert {p.ndim for group in beside.param_groups for p in group["params"]} == {1}
    settings.set_lr([muon, beside], 1, 40)
    assert muon.param_groups[0]["lr"] == settings.lr
    assert beside.param_groups[0]["lr"] == pytest.approx(0.05 * settings.lr)
    warm_up(Language(), settings)  # a model of its own


def test_a_shortened_scene_keeps_as_many_steps_as_tell_something() -> None:
    scene = Scene(length=0.25, least_steps=150)
    assert [scene.steps(task) for task in (Digits(steps=100), Images(), Language())] == [100, 150, 200]


def test_a_snapshot_is_judged_with_the_statistics_of_its_own_normalisation() -> None:
    task, scene = Images(steps=4), Scene(name="curve", snapshots=2)
    asked = Wanted(scene="curve", task=task.name, plan=PLAIN, seed=0, steps=4, settings="")
    whole, _ = run_threads(2, lambda t: train(asked, task, scene, DENSE["images"], t))
    half = dataclasses.replace(asked, steps=2)
    rates = TrainingSettings(optimizer="sgd", lr=DENSE["images"].lr, momentum=0.9, decays=False)
    first, _ = run_threads(2, lambda t: train(half, task, Scene(snapshots=1), rates, t))
    again, _ = run_threads(2, lambda t: train(asked, task, scene, rates, t))
    assert whole.curve[-1][2] == pytest.approx(whole.metric)
    assert again.curve[0][2] == first.metric


def test_a_slow_worker_waits_longer_at_times() -> None:
    from tightwire.study.trial import EmulatedCompute

    scene = Scene(wait_s=0.5, slow_rank=1, slow_factor=3.0)
    waits = [
        [next(pace) for _ in range(50)]
        for pace in (EmulatedCompute(scene, Place(rank=r, workers=2)).waits_s() for r in (0, 1))
    ]
    assert set(waits[0]) == {0.5}
    assert set(waits[1]) == {0.5, 1.5}


def test_results_are_kept_and_only_what_is_missing_is_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "study.json"
    results = Results.open(path)
    results.about = {"command": "tightwire study"}
    done = trial(PLAIN, 0, 0.9, curve=((0.1, 1, 0.5), (0.2, 2, None)), exposed_s=(0.1, None))
    failed = trial(HALF, 0, None, error="rank 1 failed first")
    results.add(done)
    results.add(failed)
    again = Results.open(path)
    assert again.trials == (done, failed)
    assert again.about == results.about
    new = dataclasses.replace(done.wanted, settings="other")
    assert again.missing([done.wanted, failed.wanted, new]) == [failed.wanted, new]
    json.loads(path.read_text())
    again.add(dataclasses.replace(done, settings="other"))
    assert [t.settings for t in Results.open(path).trials if t.plan == PLAIN] == ["other"]


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text('{"trials": [{"plan": "bsp"}]}')
    with pytest.raises(FileError, match="Move it away"):
        Results.open(path)


def test_summaries_do_not_hide_a_seed_that_diverged() -> None:
    found = findings(trial(PLAIN, 0, 0.9), trial(PLAIN, 1, 0.7), trial(HALF, 0, 0.9), trial(HALF, 1, None))
    assert found.of(PLAIN).mean == pytest.approx(0.8)
    assert found.of(HALF).mean is None
    assert found.of(HALF).diverged == 1
    assert worse(HALF, PLAIN)(found).holds is True


def test_a_loss_far_above_that_of_a_guess_has_diverged_and_is_said_to_have() -> None:
    """A model that was thrown far has a loss that is finite, and its mean with others tells nothing."""
    text, study = Language(), find("compression").narrowed(tasks=("text",), scenes=("plain",), plans=(HALF,))
    rows = [(PLAIN, 0, 2.0), (PLAIN, 1, 2.1), (HALF, 0, 2.1), (HALF, 1, 5.4e7)]
    results = Results(None, [trial(*row, task="text", steps=800) for row in rows])
    found = Findings(results, text, "plain")
    assert found.of(PLAIN).mean == pytest.approx(2.05)
    assert (found.of(HALF).mean, found.of(HALF).diverged) == (None, 1)
    assert worse(HALF, PLAIN)(found).holds is True
    assert "diverged in 1 of 2" in report.markdown(study, results)
    assert not text.has_diverged(text.guess)  # a few steps tell nothing yet


def test_claims_follow_the_numbers() -> None:
    near = findings(
        *(trial(PLAIN, s, 0.9 + s / 100) for s in range(3)),
        *(trial(HALF, s, metric) for s, metric in enumerate((0.912, 0.902, 0.922))),
    )
    far = findings(*(trial(PLAIN, s, 0.9) for s in range(3)), *(trial(HALF, s, 0.8) for s in range(3)))
    for check, on_near, on_far in (
        (within(HALF, PLAIN, 0.01), True, False),
        (same(HALF, PLAIN), True, False),
        (no_worse(HALF, PLAIN), True, False),
        (worse(HALF, PLAIN), False, True),
        (all_of(same(HALF, PLAIN), worse(HALF, PLAIN)), False, False),
    ):
        assert check(near).holds is on_near
        assert check(far).holds is on_far
    assert same("bsp/allreduce/int8", PLAIN)(near).holds is None
    assert "0.9100 ± 0.0100" in same(HALF, PLAIN)(near).numbers


def test_where_a_claim_does_not_hold_a_reason_is_told() -> None:
    """A law: the kept results are walked, and whoever finds something against a paper says why."""
    told = 0
    for name in ("sync", "compression", "architecture"):
        study = STUDIES[name]
        results = Results.open(Path(__file__).parents[2] / "results" / f"{name}.json")
        found = results.only(w for w in wanted(study, range(3)) if not results.missing([w]))
        for claim in study.claims:
            failed = [t for t in study.tasks if claim.check(Findings(found, t, claim.scene)).holds is False]
            assert claim.because or not failed, claim.sentence
            told += bool(failed)
        assert [said for _, said in report.verdicts(study, found) if said.endswith(".")]
    assert told > 5


def test_plans_are_compared_seed_by_seed() -> None:
    swings = (0.7, 0.8, 0.9)
    found = findings(
        *(trial(PLAIN, s, metric) for s, metric in enumerate(swings)),
        *(trial(HALF, s, metric - 0.01) for s, metric in enumerate(swings)),
        trial(HALF, 3, 0.1),  # a seed that only one was tried with says nothing about the two
    )
    assert found.gap(HALF, PLAIN) == pytest.approx(0.01 / 0.8)
    assert found.noise(HALF, PLAIN) < 0.01
    assert worse(HALF, PLAIN)(found).holds is True
    crossed = findings(
        *(trial(PLAIN, s, metric) for s, metric in enumerate(swings)),
        *(trial(HALF, s, metric - 0.01) for s, metric in enumerate(reversed(swings))),
    )
    assert worse(HALF, PLAIN)(crossed).holds is False


def test_bytes_are_claimed_too() -> None:
    found = findings(trial(PLAIN, 0, 0.9, bytes_per_step=1000.0), trial(HALF, 0, 0.9, bytes_per_step=100.0))
    assert fewer_bytes(HALF, PLAIN, 10)(found).holds is True
    assert fewer_bytes(HALF, PLAIN, 11)(found).holds is False
    assert fewer_bytes("bsp", PLAIN, 11)(found).holds is None


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_is_whole(name: str) -> None:
    study = find(name)
    assert study.dense in study.plans
    assert {claim.scene for claim in study.claims} <= {scene.name for scene in study.scenes}
    asked = wanted(study, range(2))
    assert len(asked) == len(set(asked)) == 2 * study.trials
    assert study.race is None or find(study.race.name) is study.race


def test_every_codec_is_studied() -> None:
    studied = {stage.name for plan in find("compression").plans for stage in Plan.parse(plan).compression}
    assert studied >= {member.name for member in MEMBERS if issubclass(member, Codec)}


def test_narrowing_keeps_dense_and_refuses_what_is_not_there() -> None:
    study = find("compression").narrowed(tasks=("text",), plans=("int8",), steps=5)
    assert study.plans == (PLAIN, full_text("int8"))
    assert [(task.name, task.steps) for task in study.tasks] == [("text", 5)]
    with pytest.raises(LabError, match="has no task images"):
        study.narrowed(tasks=("images",))
    with pytest.raises(LabError, match="at least 1"):
        study.narrowed(steps=0)
    with pytest.raises(PlanError, match="no known"):
        study.narrowed(plans=("nonsense",))
    with pytest.raises(LabError, match="there are compression"):
        find("nonsense")


@pytest.mark.parametrize("wrong", [{"wait_s": -1.0}, {"slow_share": 2.0}, {"slow_rank": 1}])
def test_impossible_scenes_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(LabError):
        Scene(**wrong)  # type: ignore[arg-type]


def test_settings_rise_and_fall_and_are_the_dense_ones_by_default() -> None:
    settings = TrainingSettings(optimizer="sgd", lr=1.0)
    rates = [settings.lr_at(step, 100) for step in range(100)]
    assert max(rates) == 1.0
    assert rates[0] < rates[4]
    assert 0 < rates[-1] < 0.02
    assert settings_for("text", PLAIN) == DENSE["text"]


def test_settings_are_those_of_a_kind() -> None:
    """A codec counts inside a method too, and so does a mean that comes tens of steps late."""
    plain = settings_for("text", full_text("stc:0.01+ef"))
    assert settings_for("text", full_text("doublesqueeze:stc:0.01+ef")) == plain
    assert settings_for("text", full_text("topk:0.01+adacomp")) == plain
    late, waiting = (
        settings_for("text", f"local:32{late}/allreduce/none/sequential") for late in (",overlap=32", "")
    )
    assert late.lr < waiting.lr == DENSE["text"].lr


def test_a_scene_may_train_all_alike() -> None:
    plain = TrainingSettings(optimizer="sgd", lr=0.125)
    scene = Scene(settings={"digits": plain})
    assert scene.settings_for("digits", full_text("efsign+ef")) == plain
    assert scene.settings_for("text", PLAIN) == DENSE["text"]


def test_snapshots_are_of_the_mean_model() -> None:
    """Workers that have not agreed for a while are judged by what they would agree on."""
    asked = Wanted(scene="curve", task="digits", plan="local:4", seed=0, steps=4, settings="")
    scene = Scene(name="curve", snapshots=4)
    first, second = run_threads(2, lambda t: train(asked, Digits(steps=4), scene, DENSE["digits"], t))
    assert first.curve[-1][2] == first.metric
    assert second.curve == ()


def test_the_report_lines_up_and_times_the_race() -> None:
    ddp, ours = STOCK[0], full_text("int8")
    study = Study(
        name="race",
        about="what?",
        workers=2,
        plans=(ddp, ours),
        dense=ddp,
        tasks=(Digits(steps=2),),
        scenes=(Scene(name="plain", snapshots=2),),
        claims=(Claim("Bytes are saved.", no_worse(ours, ddp)),),
    )
    curve = ((1.0, 1, 0.5), (3.0, 2, 0.9))
    results = Results(
        None,
        [
            trial(ddp, 0, 0.9, steps=2, curve=curve, bytes_per_step=800.0),
            trial(ours, 0, 0.95, steps=2, curve=((0.5, 1, 0.8), (1.5, 2, 1.0)), bytes_per_step=200.0),
        ],
    )
    rows = report.rows(study, results)
    assert rows[0]["seconds_to_dense"] == 3.0
    assert rows[1]["seconds_to_dense"] == pytest.approx(1.0)
    assert rows[1]["faster"] == pytest.approx(3.0)
    assert rows[1]["bytes_ratio"] == 4.0
    page = report.markdown(study, results)
    lines = [line for line in page.splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1
    assert "holds: int8 0.9500" in page
    assert "3.00×" in page


def test_never_reaching_is_said() -> None:
    late = trial(PLAIN, 0, 0.5, curve=((1.0, 1, 0.4), (2.0, 2, None), (3.0, 3, 0.5)))
    assert late.first_within(0.6, higher_is_better=True) is None
    assert late.first_within(0.45, higher_is_better=True) == pytest.approx(2.0)
    assert late.at(1.5) == 0.4
    assert late.at(0.5) is None


def test_a_trial_at_another_rate_is_another_trial() -> None:
    """Else what was timed on one line would be told of another."""
    race = find("compression").race
    assert race is not None
    own = wanted(race, [0])
    assert wanted(race.narrowed(rate_bytes_per_s=race.scenes[0].rate_bytes_per_s), [0]) == own
    other = wanted(race.narrowed(rate_bytes_per_s=6.25e6), [0])
    assert set(own).isdisjoint(other)
    assert other[0].settings.endswith(", links of 50mbit")
    made = Results(None, [Trial(**dataclasses.asdict(one), metric=1.0) for one in own])
    assert (made.missing(own), made.missing(other)) == ([], other)
