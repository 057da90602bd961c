"""Learning rates found alike for every method: the same few factors, the same short training, a seed of their own.

`tightwire study compression-rates` tries them, and keeps the best factor of each plan and task in `rates.json`, beside
this file, from which `settings_for` takes it. A method's base rate, of which these are factors, is in `settings`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib

from tightwire import files
from tightwire.study.results import Results
from tightwire.study.settings import FOUND_RATES, rate_place
from tightwire.study.study import Scene, Study
from tightwire.study.task import Task

SUFFIX = "-rates"
# Base rates were tuned by factors of two: a method that wants a rate further away than that wants settings of its own.
FACTORS = (0.5, 1.0, 2.0)
# Of training: long enough that a rate which is too high shows.
LENGTH, LEAST_STEPS = 0.25, 150
SEED = 100
# A factor must be this much better than none, as a share of the metric: short trainings of one seed tell little.
LEAST_GAIN = 0.01
# Digits are learnt in so few steps that one seed favours rates at the edge: most plans, dense gradients among them,
# were to train twice as fast, and one seed of three then diverged with 16 workers. They keep the rates tuned by hand.
TUNED_BY_HAND = ("digits",)


def rates_study(study: Study) -> Study:
    """Returns the study that seeks rates for another one's plans, in its first scene and wherever rates are its own.

    The first scene is shortened, and lines have no rate: what is sought is a loss. One with rates of its own stays as
    it is, for it has them because of its length, or of who is late in it.
    """
    first = dataclasses.replace(
        study.scenes[0],
        name="",
        length=LENGTH,
        least_steps=LEAST_STEPS,
        rate_bytes_per_s=None,
        snapshots=0,
        plans=(),
    )
    others = [dataclasses.replace(scene, snapshots=0) for scene in study.scenes if scene.has_own_rates]
    return dataclasses.replace(
        study,
        name=f"{study.name}{SUFFIX}",
        about=f"which learning rate suits each plan of the study {study.name}?",
        scenes=tuple(
            dataclasses.replace(scene, name=_name(scene.name, factor), rate=factor)
            for scene in (first, *others)
            for factor in FACTORS
        ),
        tasks=tuple(task for task in study.tasks if task.name not in TUNED_BY_HAND),
        claims=(),
        race=None,
        first_seed=SEED,
    )


def _name(scene: str, factor: float) -> str:
    return f"{scene}{' ' * bool(scene)}rate × {factor:g}"


def best_factors(study: Study, results: Results) -> dict[str, dict[str, float]]:
    """Returns the best factor by place and plan, where one is better than the base rate; of those that learn.

    A place is a task, or a task in a scene that has rates of its own; see `rate_place`.
    """
    found: dict[str, dict[str, float]] = {}
    for task in study.tasks:
        for base in dict.fromkeys(_base(scene) for scene in study.scenes):
            for plan in study.plans:
                metrics = _losses(study, results, task, plan, base)
                if not metrics:
                    continue
                best = min(metrics, key=metrics.__getitem__)
                usual = metrics.get(1.0, math.inf)
                if usual - metrics[best] > LEAST_GAIN * abs(metrics[best]):
                    found.setdefault(rate_place(task.name, base), {})[plan] = best
    return found


def _base(scene: Scene) -> str:
    """Returns the name of the scene with rates of its own that a trial of a rate is for; empty: the first."""
    return scene.name.rpartition("rate × ")[0].strip()


def without_rate(study: Study, results: Results) -> list[tuple[str, str]]:
    """Returns place and plan of those that were tried at every rate and diverged at each."""
    found = []
    for task in study.tasks:
        for base in dict.fromkeys(map(_base, study.scenes)):
            names = [scene.name for scene in study.scenes if _base(scene) == base]
            found += [
                (rate_place(task.name, base), plan)
                for plan in study.plans
                if all(results.summary(name, task.name, plan).trials for name in names)
                and not _losses(study, results, task, plan, base)
            ]
    return found


def _losses(study: Study, results: Results, task: Task, plan: str, base: str) -> dict[float, float]:
    """Returns a plan's metric by factor, the less the better, of those with which it learns."""
    sign = -1.0 if task.higher_is_better else 1.0
    return {
        scene.rate: sign * mean
        for scene in study.scenes
        if _base(scene) == base
        and (mean := results.summary(scene.name, task.name, plan).mean) is not None
        and task.is_learnt(mean)
    }


def write(study: Study, results: Results, path: pathlib.Path = FOUND_RATES) -> pathlib.Path:
    """Writes the factors that were found times those that were in force while they were sought."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for place, plans in best_factors(study, results).items():
        everywhere = known.get(place.partition(", ")[0], {})
        before = known.setdefault(place, {})
        for plan, factor in plans.items():
            before[plan] = before.get(plan, everywhere.get(plan, 1.0)) * factor
    files.write_text(path, json.dumps(known, indent=1, sort_keys=True) + "\n")
    return path
