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
from tightwire.study.settings import FOUND_RATES
from tightwire.study.study import Scene, Study
from tightwire.study.task import Task

SUFFIX = "-rates"
# Base rates were tuned by factors of two: a method that wants a rate further away than that wants settings of its own.
FACTORS = (0.5, 1.0, 2.0)
# Of training: long enough that a rate which is too high shows.
LENGTH = 0.25
SEED = 100
# A factor must be this much better than none, as a share of the metric: short trainings of one seed tell little.
LEAST_GAIN = 0.01


def rates_study(study: Study) -> Study:
    """Returns the study that seeks rates for another one's plans, in its plain scene."""
    scenes = tuple(Scene(name=f"rate × {factor:g}", length=LENGTH, rate=factor) for factor in FACTORS)
    return dataclasses.replace(
        study,
        name=f"{study.name}{SUFFIX}",
        about=f"which learning rate suits each plan of the study {study.name}?",
        scenes=scenes,
        claims=(),
        race=None,
        first_seed=SEED,
    )


def best_factors(study: Study, results: Results) -> dict[str, dict[str, float]]:
    """Returns the best factor by task and plan, where one is better than the base rate; of those that learn."""
    found: dict[str, dict[str, float]] = {}
    for task in study.tasks:
        for plan in study.plans:
            metrics = _losses(study, results, task, plan)
            if not metrics:
                continue
            best = min(metrics, key=metrics.__getitem__)
            base = metrics.get(1.0, math.inf)
            if base - metrics[best] > LEAST_GAIN * abs(metrics[best]):
                found.setdefault(task.name, {})[plan] = best
    return found


def without_rate(study: Study, results: Results) -> list[tuple[str, str]]:
    """Returns task and plan of those that were tried at every rate and diverged at each."""
    return [
        (task.name, plan)
        for task in study.tasks
        for plan in study.plans
        if all(results.summary(scene.name, task.name, plan).trials for scene in study.scenes)
        and not _losses(study, results, task, plan)
    ]


def _losses(study: Study, results: Results, task: Task, plan: str) -> dict[float, float]:
    """Returns a plan's metric by factor, the less the better, of those with which it learns."""
    sign = -1.0 if task.higher_is_better else 1.0
    return {
        scene.rate: sign * mean
        for scene in study.scenes
        if (mean := results.summary(scene.name, task.name, plan).mean) is not None and task.is_learnt(mean)
    }


def write(study: Study, results: Results, path: pathlib.Path = FOUND_RATES) -> pathlib.Path:
    """Writes the factors that were found times those that were in force while they were sought."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for task, plans in best_factors(study, results).items():
        before = known.setdefault(task, {})
        for plan, factor in plans.items():
            before[plan] = before.get(plan, 1.0) * factor
    files.write_text(path, json.dumps(known, indent=1, sort_keys=True) + "\n")
    return path
