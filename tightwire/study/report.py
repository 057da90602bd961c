"""A study's report: tables that line up, claims with their numbers, as text for terminals and for the repository."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from tightwire.study.claims import Findings, at_equal_time, print_metric
from tightwire.study.results import Results, Summary
from tightwire.study.study import Scene, Study, dense_scene, labels
from tightwire.study.task import Task
from tightwire.units import print_size

Table = list[tuple[str, ...]]


def rows(study: Study, results: Results) -> list[dict[str, Any]]:
    """Returns one row per scene, task and plan, for `--json`."""
    return [
        _row(study, Findings(results, task, scene.name), scene, plan)
        for scene in study.scenes
        for task in study.tasks_in(scene)
        for plan in study.plans_in(scene)
    ]


def _row(study: Study, findings: Findings, scene: Scene, plan: str) -> dict[str, Any]:
    summary, dense = findings.of(plan), findings.of(study.dense)
    settings = scene.settings_for(findings.task.name, plan)
    alike = dataclasses.replace(findings, scene=dense_scene(settings)).of(study.dense)
    gap = findings.gap(plan, study.dense) if summary.trials and summary.mean is not None else None
    row = {
        "scene": scene.name,
        "task": findings.task.name,
        "metric": findings.task.metric,
        "plan": plan,
        "seeds": len(summary.trials),
        "steps": summary.trials[0].steps if summary.trials else None,
        "mean": summary.mean,
        "spread": summary.spread,
        "worse_than_dense": gap,
        "settings": str(settings),
        "worse_than_dense_alike": _gap(findings, summary, alike)
        if alike.trials and scene.name == "plain"
        else gap,
        "bytes_per_step": summary.bytes_per_step,
        "bytes_ratio": _ratio(dense.bytes_per_step, summary.bytes_per_step),
        "rounds": summary.trials[0].rounds if summary.trials else None,
        "skipped": sum(t.skipped for t in summary.trials),
        "exposed_s": _mean([s for t in summary.trials for s in t.exposed_s]),
        "exposed_max_s": _mean([_most(t.exposed_s) for t in summary.trials]),
        "staleness_mean": _mean([t.staleness_mean for t in summary.trials]),
        "staleness_max": _most([t.staleness_max for t in summary.trials]),
        "seconds": _mean([t.seconds for t in summary.trials]),
        "steps_per_s": summary.steps_per_s,
        "errors": list(summary.errors),
    }
    if scene.snapshots:
        mine, theirs = (time_to_dense(study, findings, p) for p in (plan, study.dense))
        row |= {"seconds_to_dense": mine, "faster": _ratio(theirs, mine)}
        row |= {"at_equal_time": _mean(list(at_equal_time(findings, plan).values()))}
    return row


def _gap(findings: Findings, summary: Summary, dense: Summary) -> float | None:
    """Returns by which share of dense's metric a plan is worse, over the seeds that both were tried with."""
    if summary.mean is None or not dense.mean:
        return None
    sign = -1.0 if findings.task.higher_is_better else 1.0
    others = {t.seed: t.metric for t in dense.trials}
    pairs = [(t.metric, others.get(t.seed)) for t in summary.trials]
    gaps = [sign * (mine - other) for mine, other in pairs if mine is not None and other is not None]
    return statistics.fmean(gaps) / abs(dense.mean) if gaps else None


def time_to_dense(study: Study, findings: Findings, plan: str) -> float | None:
    """Returns the seconds until a plan reaches the metric that dense ends with; None if a seed never does.

    Seed by seed: each against the same seed's dense run.
    """
    ends = {t.seed: t.metric for t in findings.of(study.dense).trials}
    reached = [
        None if (end := ends.get(t.seed)) is None
        else t.first_within(end, higher_is_better=findings.task.higher_is_better)
        for t in findings.of(plan).trials
    ]  # fmt: skip
    return _mean(reached)


def _most(values: Sequence[float | None]) -> float | None:
    """Returns the largest, or None where there is nothing, or something is missing."""
    known = [value for value in values if value is not None]
    return max(known) if known and len(known) == len(values) else None


def _mean(values: Sequence[float | None]) -> float | None:
    """Returns the mean, or None where there is nothing, or something is missing."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


def _ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a and b else None


def tables(study: Study, results: Results) -> Iterator[tuple[str, Table]]:
    """Yields a title and a table, head first, per scene and task; best plans in the study's order."""
    short = labels(study.plans)
    cells = rows(study, results)
    for scene in study.scenes:
        for task in study.tasks_in(scene):
            mine = [r for r in cells if (r["scene"], r["task"]) == (scene.name, task.name)]
            found = Findings(results, task, scene.name)
            lines = [(*_line(short, r, found), *_time_in(scene, r)) for r in mine]
            yield _title(scene, task, mine), _filled([(*_head(task), *_time_head(scene)), *lines])


def _filled(table: Table) -> Table:
    """Returns a table without the columns in which no row has anything."""
    kept = [column for column, cells in enumerate(zip(*table[1:], strict=True)) if any(cells)]
    return [tuple(row[column] for column in kept) for row in table]


def _title(scene: Scene, task: Task, mine: Sequence[dict[str, Any]]) -> str:
    counts = [row["seeds"] for row in mine] or [0]
    few, most = min(counts), max(counts)
    seeds = f"{most} seed{'s' * (most != 1)}" if few == most else f"{few} to {most} seeds"
    where = "" if scene.name == "plain" else f", {scene.name}"
    return f"{task.name}{where}: {task.metric} after {scene.steps(task)} steps, {seeds}"


def _head(task: Task) -> tuple[str, ...]:
    return ("plan", task.metric, "worse by", "at its rate", "sent per step", "less", "rounds", "skipped")


def _time_head(scene: Scene) -> tuple[str, ...]:
    timed = ("ms a step", "ms waited", "at most", "staleness", "at most") if scene.is_timed else ()
    race = ("at equal time", "to dense's end", "faster") if scene.snapshots else ()
    return timed + race


def _time_in(scene: Scene, row: dict[str, Any]) -> tuple[str, ...]:
    """Returns what is told of time: a step's, a worker's wait in it (mean and largest), and of the race."""
    timed: tuple[str, ...] = ()
    if scene.is_timed:
        rate, age = row["steps_per_s"], row["staleness_mean"]
        timed = (
            "" if rate is None else f"{1e3 / rate:.1f}",
            _milliseconds(row["exposed_s"]),
            _milliseconds(row["exposed_max_s"]),
            "" if age is None else f"{age:.2f}",
            "" if age is None else str(row["staleness_max"]),
        )
    if not scene.snapshots:
        return timed
    early = row["at_equal_time"]
    metric = "" if early is None else f"{early:.4f}"
    return (*timed, metric, _seconds(row["seconds_to_dense"]), _times(row["faster"]))


def _line(short: Any, row: dict[str, Any], findings: Findings) -> tuple[str, ...]:
    summary = findings.of(row["plan"])
    return (
        short[row["plan"]],
        print_metric(summary),
        *(
            "" if row[name] is None else f"{row[name]:+z.2%}"
            for name in ("worse_than_dense", "worse_than_dense_alike")
        ),
        _size(summary),
        _times(row["bytes_ratio"]),
        "" if row["rounds"] is None else str(row["rounds"]),
        str(row["skipped"] or ""),
    )


def _size(summary: Summary) -> str:
    return "" if summary.bytes_per_step is None else print_size(round(summary.bytes_per_step))


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.1f}"


def _seconds(seconds: float | None) -> str:
    return "not reached" if seconds is None else f"{seconds:.1f} s"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}×" if ratio < 10 else f"{ratio:.0f}×"


def verdicts(study: Study, results: Results) -> Iterator[tuple[str, str]]:
    """Yields each claim with what was found of it on each task of its scene, if that is studied."""
    scenes = {scene.name: scene for scene in study.scenes}
    for claim in study.claims:
        if claim.scene in scenes:
            for task in study.tasks_in(scenes[claim.scene]):
                found = claim.check(Findings(results, task, claim.scene))
                why = f" {claim.because}" if found.holds is False else ""
                yield claim.sentence, f"{task.name}: {found}.{why}"


def markdown(study: Study, results: Results) -> str:
    """Returns the report that is kept in the repository."""
    parts = [f"# Study: {study.name}", study.about[0].upper() + study.about[1:], _made(study, results)]
    for title, table in tables(study, results):
        parts += [f"## {title[0].upper() + title[1:]}", aligned(table)]
    claims: dict[str, list[str]] = {}
    for sentence, found in verdicts(study, results):
        claims.setdefault(sentence, []).append(f"    - {found}")
    if claims:
        parts += [
            "## What the literature says",
            "\n".join(f"- {s}\n" + "\n".join(f) for s, f in claims.items()),
        ]
    return "\n\n".join(parts) + "\n"


def _made(study: Study, results: Results) -> str:
    about = results.about
    lines = [
        f"Made by `{about['command']}`" if "command" in about else "",
        f"on {about['machine']}." if "machine" in about else "",
        f"{study.workers} workers where nothing else is said, the same initial weights and the same batches for every "
        "plan. Spread is the standard deviation over seeds; bytes are payload that a worker sends, as counted. “At its "
        "rate” compares with dense gradients that train with the same optimizer and learning rate.",
    ]
    return " ".join(filter(None, lines))


def aligned(table: Table, *, texts: int = 1) -> str:
    """Returns a table as Markdown whose columns line up in plain text too; the first `texts` hold words."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [
            c.ljust(w) if i < texts else c.rjust(w)
            for i, (c, w) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (w + 1) + (":" if i >= texts else "-") for i, w in enumerate(widths)) + "|"
    return "\n".join([line(table[0]), rule, *map(line, table[1:])])
