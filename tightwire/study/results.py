"""What trials found: kept in a file, one line per trial, so that a study that was stopped goes on where it was."""

from __future__ import annotations

import itertools
import json
import pathlib
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

from tightwire import files
from tightwire.errors import FileError

Point = tuple[float, int, float | None]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One trial to be made.

    Attributes:
        scene: its name.
        task: its name.
        plan: its text.
        seed: of weights and data.
        steps: of the optimizer.
        settings: of the optimizer, and links of another rate than the study's, in words: a trial with others is another
            trial, which takes its place.
    """

    scene: str
    task: str
    plan: str
    seed: int
    steps: int
    settings: str


@dataclass(frozen=True, kw_only=True)
class Trial(Wanted):
    """One trial that was made.

    Attributes:
        metric: on held-out data after the last step; None where the model diverged.
        seconds: from the first step to the slowest worker's last.
        bytes_per_step: payload that a worker sends, mean over workers and steps; None where nobody counted.
        exposed_s: mean wait per step of each worker.
        steps_per_s: that a worker made, mean over workers; None in results of before it was kept.
        staleness_mean: how old what was stepped with was, over all workers; None where nothing ever is.
        staleness_max: how old at most.
        rounds: agreements; None where nobody counted.
        skipped: rounds that were dropped for a NaN or an Inf.
        curve: (seconds, steps, metric) at regular steps, of the mean of all workers' models, at rank 0's time.
        error: why it could not be made; empty where it was.
    """

    metric: float | None = None
    seconds: float = 0.0
    bytes_per_step: float | None = None
    exposed_s: tuple[float | None, ...] = ()
    rounds: int | None = None
    skipped: int = 0
    steps_per_s: float | None = None
    staleness_mean: float | None = None
    staleness_max: int | None = None
    curve: tuple[Point, ...] = ()
    error: str = ""

    @property
    def wanted(self) -> Wanted:
        """What was asked for."""
        return Wanted(**{f.name: vars(self)[f.name] for f in fields(Wanted)})

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Self:
        """Reads a line of a results file."""
        lists = {
            "exposed_s": tuple(row.get("exposed_s", ())),
            "curve": tuple(tuple(point) for point in row.get("curve", ())),
        }
        return cls(**row | lists)

    def first_within(self, metric: float, *, higher_is_better: bool) -> float | None:
        """Returns the seconds until the curve first reaches a metric, straight between its points; None if never.

        >>> trial = Trial(
        ...     scene="", task="", plan="", seed=0, steps=2, settings="", curve=((1.0, 1, 4.0), (2.0, 2, 2.0))
        ... )
        >>> trial.first_within(3.0, higher_is_better=False)
        1.5
        """
        sign = 1.0 if higher_is_better else -1.0
        known = [(t, sign * m) for t, _, m in self.curve if m is not None]
        if known and known[0][1] >= sign * metric:
            return known[0][0]
        for (t0, m0), (t1, m1) in itertools.pairwise(known):
            if m1 >= sign * metric:
                return t0 + (t1 - t0) * (sign * metric - m0) / (m1 - m0)
        return None

    def at(self, seconds: float) -> float | None:
        """Returns the metric of the last snapshot that was taken in time; None where there is none."""
        return next((metric for t, _, metric in reversed(self.curve) if t <= seconds), None)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One plan on one task in one scene, over all seeds.

    Attributes:
        mean: of the metric; None where a seed diverged or nothing was measured.
        spread: standard deviation over seeds; 0 for one seed.
        trials: that it is made of.
    """

    mean: float | None
    spread: float
    trials: tuple[Trial, ...]

    @property
    def bytes_per_step(self) -> float | None:
        """Payload that a worker sends per step."""
        counts = [t.bytes_per_step for t in self.trials if t.bytes_per_step is not None]
        return statistics.fmean(counts) if counts else None

    @property
    def steps_per_s(self) -> float | None:
        """Steps of a worker, mean over workers and seeds."""
        rates = [
            t.steps / t.seconds if t.steps_per_s is None else t.steps_per_s for t in self.trials if t.seconds
        ]
        return statistics.fmean(rates) if rates else None

    @property
    def diverged(self) -> int:
        """Seeds whose model did."""
        return sum(trial.metric is None and not trial.error for trial in self.trials)

    @property
    def errors(self) -> tuple[str, ...]:
        """Why seeds could not be tried."""
        return tuple(trial.error for trial in self.trials if trial.error)


class Results:
    """The trials of one study, in memory and in a file."""

    def __init__(self, path: pathlib.Path | None = None, trials: Iterable[Trial] = ()) -> None:
        self.path = path
        self.about: dict[str, Any] = {}
        self._trials: dict[Wanted, Trial] = {trial.wanted: trial for trial in trials}

    @classmethod
    def open(cls, path: pathlib.Path) -> Self:
        """Reads a results file; one that does not exist yet is empty.

        Raises:
            FileError: there is a file, and it is not one of ours.
        """
        if not path.exists():
            return cls(path)
        try:
            document = files.read_json(path)
            results = cls(path, [Trial.from_json(row) for row in document.pop("trials")])
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise FileError(
                f"{path} was to hold the trials of a study and cannot be read as such: {error!r}. "
                "Move it away, or give another --out."
            ) from error
        results.about = document
        return results

    @property
    def trials(self) -> tuple[Trial, ...]:
        """All of them, in a fixed order."""
        key = lambda t: (t.scene, t.task, t.plan, t.seed)  # noqa: E731
        return tuple(sorted(self._trials.values(), key=key))

    def add(self, trial: Trial) -> None:
        """Keeps a trial, in the file too, in the place of one that trained with other settings."""
        same = replace(trial.wanted, settings="")
        self._trials = {w: t for w, t in self._trials.items() if replace(w, settings="") != same}
        self._trials[trial.wanted] = trial
        self.write()

    def missing(self, wanted: Sequence[Wanted]) -> list[Wanted]:
        """Returns what has not been tried yet, or could not be."""
        return [w for w in wanted if w not in self._trials or self._trials[w].error]

    def only(self, wanted: Iterable[Wanted]) -> Results:
        """Returns the results of some trials alone, without a file."""
        found = Results(None, [self._trials[w] for w in wanted if w in self._trials])
        found.about = self.about
        return found

    def summary(
        self,
        scene: str,
        task: str,
        plan: str,
        has_diverged: Callable[[float | None], bool] = lambda metric: metric is None,
    ) -> Summary:
        """Returns what all seeds together say of a plan; trials that have diverged are without a metric."""
        asked = (scene, task, plan)
        trials = tuple(
            replace(t, metric=None) if has_diverged(t.metric) else t
            for t in self.trials
            if (t.scene, t.task, t.plan) == asked
        )
        metrics = [t.metric for t in trials if t.metric is not None]
        sound = bool(trials) and len(metrics) == len(trials)
        return Summary(
            mean=statistics.fmean(metrics) if sound else None,
            spread=statistics.stdev(metrics) if sound and len(metrics) > 1 else 0.0,
            trials=trials,
        )

    def write(self) -> None:
        """Writes the file, whole or not at all."""
        if self.path is None:
            return
        rows = ",\n".join("  " + json.dumps(asdict(trial)) for trial in self.trials)
        about = json.dumps(self.about, indent=1)[1:-1].strip("\n")
        files.make_directory(self.path.parent)
        files.write_text(
            self.path, "{\n" + about + (",\n" if about else "") + f' "trials": [\n{rows}\n ]\n}}\n'
        )
