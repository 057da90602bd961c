"""Conducts a study: starts the workers once, has them make trial after trial, keeps each result as it comes."""

from __future__ import annotations

import collections
import json
import pathlib
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Literal

from tightwire.errors import LabError
from tightwire.lab import Lab, OutputLine, Topology
from tightwire.study.results import Results, Trial, Wanted
from tightwire.study.study import STOCK, Scene, Study
from tightwire.units import print_exact_rate

WORDS_KEPT = 12  # lines of a failing worker's output


def wanted(study: Study, seeds: Sequence[int]) -> list[Wanted]:
    """Returns all trials of a study, scene by scene, the seeds of a plan one after another."""
    return [
        Wanted(
            scene=scene.name,
            task=task.name,
            plan=plan,
            seed=seed,
            steps=round(scene.steps(task) * study.longer(plan)),
            settings=_settings(scene, task.name, plan),
        )
        for scene in study.scenes
        for task in study.tasks_in(scene)
        for plan in study.plans_in(scene)
        for seed in seeds
    ]


def _settings(scene: Scene, task: str, plan: str) -> str:
    """Returns what tells a trial from others of a scene, in words."""
    found = str(scene.settings_for(task, plan))
    if not scene.is_asked_for or scene.rate_bytes_per_s is None:
        return found
    return f"{found}, links of {print_exact_rate(scene.rate_bytes_per_s)}"


def conduct(
    study: Study,
    seeds: Sequence[int],
    results: Results,
    on_trial: Callable[[Trial | Wanted], None] = lambda trial: None,
) -> Results:
    """Makes the trials that `results` does not hold yet.

    A trial that fails is kept with its error, the workers start anew, and the study goes on.

    Args:
        study: what to compare.
        seeds: of weights and data.
        results: what is known; grows.
        on_trial: told of each trial as it begins (a `Wanted`) and as it ends (a `Trial`).

    Returns:
        The results of this study's trials alone; of other seeds too, where they were tried before.

    Raises:
        LabError: the emulated cluster cannot be built, or cannot slow down stock DDP where it is to be compared.
    """
    asked = wanted(study, seeds)
    for scene in study.scenes:
        missing = collections.deque(results.missing([w for w in asked if w.scene == scene.name]))
        while missing:
            _WorkersStart(study, scene, results, on_trial).run(missing)
    known = {trial.seed for trial in results.trials}
    return results.only(wanted(study, sorted(known.union(seeds))))


class _WorkersStart:
    """One start of the workers."""

    def __init__(
        self, study: Study, scene: Scene, results: Results, on_trial: Callable[[Trial | Wanted], None]
    ) -> None:
        self._study, self._scene, self._results, self._on_trial = study, scene, results, on_trial
        self._words: collections.deque[str] = collections.deque(maxlen=WORDS_KEPT)
        self._began = False

    def run(self, missing: collections.deque[Wanted]) -> None:
        """Takes trials off `missing` until none is left or one fails."""
        workers = self._study.workers_in(self._scene)
        topology = Topology(workers=workers, rate_bytes_per_s=self._scene.rate_bytes_per_s)
        shaped = self._scene.rate_bytes_per_s is not None
        # Four workers on two cores spend their time waking up: as batch work they wake as if alone.
        mode: Literal["auto", "shaped"] = "auto" if shaped else "shaped"
        with (
            Lab(topology, mode=mode, batch_scheduling=not shaped) as lab,
            tempfile.TemporaryDirectory() as folder,
        ):
            if shaped and not lab.shapes_everything and any(w.plan in STOCK for w in missing):
                raise LabError(
                    f"{self._study.name} compares stock DDP at a rate that nothing here can hold it to: "
                    f"{lab.describe()} Leave ddp out with --plans."
                )
            order = pathlib.Path(folder) / "order.json"
            order.write_text(self._order(missing), encoding="utf-8")
            ended = lab.run(
                [sys.executable, "-W", "ignore", "-m", "tightwire.study.worker", str(order)],
                on_line=lambda line: self._hear(line, missing),
            )
        if ended.ok:
            return
        if not self._began or not missing:
            words = "\n".join(self._words)
            raise LabError(f"the workers of study {self._study.name} failed: {ended.describe()}\n{words}")
        self._failed(missing.popleft(), ended.describe())

    def _order(self, missing: Sequence[Wanted]) -> str:
        return json.dumps({"study": self._study.name, "trials": [asdict(w) for w in missing]})

    def _hear(self, line: OutputLine, missing: collections.deque[Wanted]) -> None:
        if line.rank == 0 and line.text.startswith('{"began"'):
            self._began = True
            self._on_trial(missing[0])
        elif line.rank == 0 and line.text.startswith('{"trial"'):
            self._keep(Trial.from_json(json.loads(line.text)["trial"]))
            missing.popleft()
        else:
            self._words.append(f"[{line.rank}] {line.text}")

    def _keep(self, trial: Trial) -> None:
        self._results.add(trial)
        self._on_trial(trial)

    def _failed(self, trial: Wanted, ending: str) -> None:
        words = [word for word in self._words if "Error" in word] or list(self._words)
        self._keep(replace(Trial(**asdict(trial)), error=f"{ending} {words[-1] if words else ''}".strip()))
