"""One table of all methods: measured losses and bytes, predicted times."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from tightwire.profile import Profile
from tightwire.study import rates, table
from tightwire.study.results import Results, Trial
from tightwire.study.settings import settings_for
from tightwire.study.studies import STUDIES, find
from tightwire.study.study import PLAIN, dense_scene, dense_scenes

DENSE, INT8 = "bsp/allreduce/none/sequential", "bsp/allreduce/int8/sequential"


def trial(plan: str, metric: float, scene: str = "plain", seed: int = 0, task: str = "text") -> Trial:
    return Trial(
        scene=scene,
        task=task,
        plan=plan,
        seed=seed,
        steps=100,
        settings="",
        metric=metric,
        bytes_per_step=1e5,
    )


def test_losses_are_measured_and_times_predicted() -> None:
    study = find("compression").narrowed(tasks=["text"], scenes=["plain"], plans=[INT8])
    results = Results(
        None, [trial(DENSE, 2.0), trial(INT8, 2.02), trial(DENSE, 2.1, seed=1), trial(INT8, 2.12, seed=1)]
    )
    profile = Profile.uniform(layers=4, numel_per_layer=100_000, forward_s=0.01, backward_s=0.02)
    found = {e.plan: e for e in table.entries({"compression": (study, results)}, {"text": profile})}
    slow = [e.train_s[0] for e in (found[DENSE], found[INT8])]
    assert slow[0] is not None
    assert slow[1] is not None
    assert slow[0] > slow[1]
    assert found[INT8].worse_by == pytest.approx(0.02 / 2.05)
    assert found[INT8].sent_bytes == 1e7
    page = table.markdown(list(found.values()))
    assert "50 Mb/s" in page
    assert "int8" in page


def test_a_method_is_held_to_dense_gradients_of_its_own_seeds() -> None:
    """Dense gradients have more seeds: what these are better or worse by is not the method's doing."""
    study = find("compression").narrowed(tasks=["text"], scenes=["plain"], plans=[INT8])
    results = Results(None, [trial(DENSE, 2.0), trial(DENSE, 2.4, seed=1), trial(INT8, 1.9999999)])
    entries = table.entries({"compression": (study, results)}, {})
    found = {e.plan: e for e in entries}
    assert found[INT8].worse_by == pytest.approx(0.0, abs=1e-6)
    page = table.markdown(entries)
    assert "2.2000 ± 0.2828" in page
    assert "2.0000 |" in page  # one seed has no spread
    assert "-0.00%" not in page


def test_times_to_a_loss_are_told_of_what_was_measured_alone() -> None:
    """Gossip that diverges with a codec is not known by what gossip costs times what the codec does."""
    ecd = "bsp/gossip/int4+ecd/sequential"
    study = find("architecture").narrowed(tasks=["text"], scenes=["plain"], plans=[ecd])
    results = Results(None, [trial(DENSE, 2.0), trial(ecd, 3.4)])
    profile = Profile.uniform(layers=4, numel_per_layer=100_000, forward_s=0.01, backward_s=0.02)
    found = {e.plan: e for e in table.entries({"architecture": (study, results)}, {"text": profile})}
    assert found[ecd].train_s[0] is not None
    assert found[ecd].to_loss_s == (None, None, None)
    assert found[DENSE].to_loss_s == found[DENSE].train_s


def test_compute_is_told_without_what_else_the_machine_did() -> None:
    busy = Profile.uniform(layers=2, numel_per_layer=10, forward_s=0.3, backward_s=0.6)
    found = table.alone(dataclasses.replace(busy, contention=3.0))
    assert (found.forward_s, found.backward_s) == pytest.approx((0.1, 0.2))
    assert found.parameters[-1].ready_s == pytest.approx(0.2)
    assert found.contention == 1.0


def test_there_is_a_dense_row_for_every_optimizer_and_rate() -> None:
    study = STUDIES["compression"]
    for task in study.tasks:
        for plan in study.plans:
            settings = settings_for(task.name, plan)
            if settings != settings_for(task.name, DENSE):
                scene = next(s for s in study.scenes if s.name == dense_scene(settings))
                assert task in study.tasks_in(scene)
                assert scene.plans == (DENSE,)
                assert scene.settings_for(task.name, DENSE) == settings
    assert dense_scenes([DENSE], DENSE) == []


def test_the_best_rate_is_kept_where_it_gains_enough(tmp_path: object) -> None:
    study = rates.rates_study(find("compression").narrowed(tasks=["text"], plans=[INT8]))
    metrics = {0.25: 3.0, 0.5: 2.0, 1.0: 2.5, 2.0: 2.6}
    results = Results(None, [trial(INT8, m, f"rate × {f:g}", rates.SEED) for f, m in metrics.items()])
    results.add(trial(DENSE, 2.0, "rate × 1", rates.SEED))
    results.add(trial(DENSE, 1.99, "rate × 2", rates.SEED))
    assert rates.best_factors(study, results) == {"text": {INT8: 0.5}}
    assert rates.without_rate(study, results) == []
    assert [scene.settings_for("text", INT8).lr for scene in study.scenes] == [
        f * PLAIN.settings_for("text", INT8).lr for f in rates.FACTORS
    ]


def test_a_scene_with_rates_of_its_own_is_sought_in_apart(tmp_path: Path) -> None:
    """Who is late bears on what a method can take: its factor counts there alone, others' as everywhere."""
    late = "local:8,overlap=8/allreduce/none/sequential"
    study = rates.rates_study(find("sync").narrowed(tasks=["text"], plans=[late]))
    names = [scene.name for scene in study.scenes]
    assert names[:3] == ["rate × 0.5", "rate × 1", "rate × 2"]
    assert "straggler rate × 0.5" in names
    found = {"rate × 0.5": 2.5, "rate × 1": 2.0, "rate × 2": 3.0}
    found |= {"straggler rate × 0.5": 2.5, "straggler rate × 1": 1e4, "straggler rate × 2": 1e5}
    results = Results(None, [trial(late, metric, scene, rates.SEED) for scene, metric in found.items()])
    assert rates.best_factors(study, results) == {"text, straggler": {late: 0.5}}
    kept = rates.write(study, results, tmp_path / "rates.json")
    assert json.loads(kept.read_text()) == {"text, straggler": {late: 0.5}}
    study = rates.rates_study(find("sync"))
    straggler = next(scene for scene in study.scenes if scene.name == "straggler rate × 2")
    even = next(scene for scene in study.scenes if scene.name == "rate × 2")
    assert straggler.settings_for("text", "bsp").lr == even.settings_for("text", "bsp").lr == 1.0


def test_no_rate_is_kept_where_all_diverge() -> None:
    study = rates.rates_study(find("compression").narrowed(tasks=["text"], plans=[INT8]))
    metrics = {0.5: 991.0, 1.0: math.log(256) + 0.01, 2.0: 16022.0}
    results = Results(None, [trial(INT8, m, f"rate × {f:g}", rates.SEED) for f, m in metrics.items()])
    assert rates.best_factors(study, results) == {}
    assert rates.without_rate(study, results) == [("text", INT8)]
