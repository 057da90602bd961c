"""One table of all methods: loss against bytes and against time, from what the studies measured.

Losses and bytes are measured, in the plain scenes of the studies. Times are predicted: the simulator's step of the same
plan, for the measured compute of the task's model and lines of several rates, times the steps that were made, and times
those that the loss of dense gradients takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tightwire.cluster import Cluster
from tightwire.errors import PlanError, ProgramError
from tightwire.plan import Plan
from tightwire.planner import extra_steps
from tightwire.planner.quality import is_measured
from tightwire.profile import Profile, measure
from tightwire.simulate import predict
from tightwire.study.claims import Findings
from tightwire.study.report import Table, aligned
from tightwire.study.results import Results
from tightwire.study.study import STOCK, TASKS, Study, labels
from tightwire.study.task import Place, Task
from tightwire.units import print_rate, print_size

RATES = (6.25e6, 25e6, 125e6)
# Of a line's rate, what is payload (TCP at an MTU of 1500), and a usual latency in a data centre.
PAYLOAD, LATENCY_S = 0.956, 50e-6
PROFILE_STEPS = 12


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One method on one task.

    Attributes:
        study: that measured it.
        task: its name.
        plan: its text.
        label: short.
        loss: mean of the metric over seeds; None where one diverged.
        spread: standard deviation over seeds; 0 for one seed.
        seeds: how many were tried.
        worse_by: as a share of dense gradients' metric, over the seeds that both were tried with.
        steps: that were made.
        sent_bytes: that a worker sent in them; None where nobody counted.
        times_steps: how many times as many steps as dense gradients it needs for their loss; None where studies
            measured that of its answers one by one alone.
        train_s: predicted seconds of these steps, by rate.
        to_loss_s: predicted seconds to the loss of dense gradients, by rate.
    """

    study: str
    task: str
    plan: str
    label: str
    loss: float | None
    spread: float
    seeds: int
    worse_by: float | None
    steps: int
    sent_bytes: float | None
    times_steps: float | None
    train_s: tuple[float | None, ...]
    to_loss_s: tuple[float | None, ...]


def profiles(names: Sequence[str]) -> dict[str, Profile]:
    """Measures the compute of some tasks' models, on one core of its own: what else is at work here is taken off."""
    return {name: _profile(TASKS[name]) for name in names}


def _profile(task: Task) -> Profile:
    import torch

    from tightwire.study.settings import DENSE

    torch.set_num_threads(1)
    replica = task.replica(Place(rank=0, workers=4))
    [optimizer] = DENSE[task.name].build(replica.model.parameters())

    def step() -> None:
        optimizer.zero_grad()
        replica.loss(replica.model, replica.batch()).backward()
        optimizer.step()

    return alone(measure(replica.model, optimizer, step, steps=PROFILE_STEPS))


def alone(profile: Profile) -> Profile:
    """Returns the profile of a worker that shares its core with nobody: processor time in the place of the wall's."""
    share = 1 / profile.contention
    return replace(
        profile,
        forward_s=profile.forward_s * share,
        backward_s=profile.backward_s * share,
        optimizer_s=profile.optimizer_s * share,
        parameters=tuple(replace(p, ready_s=p.ready_s * share) for p in profile.parameters),
        contention=1.0,
    )


def entries(
    studies: Mapping[str, tuple[Study, Results]],
    computes: Mapping[str, Profile],
    rates: Sequence[float] = RATES,
) -> list[Entry]:
    """Returns an entry for every plan of the studies' plain scenes that was measured, the best losses first."""
    found = []
    for study, results in studies.values():
        scene = study.scenes[0]
        short = labels(study.plans)
        for task in study.tasks_in(scene):
            findings = Findings(results, task, scene.name)
            for plan in study.plans_in(scene):
                mine = findings.of(plan)
                if mine.trials and not mine.errors and plan not in STOCK:
                    found.append(_entry(study, findings, short[plan], plan, computes.get(task.name), rates))
    return sorted(found, key=lambda e: (e.task, e.worse_by is None, e.worse_by or 0.0))


def _entry(
    study: Study,
    findings: Findings,
    label: str,
    plan: str,
    compute: Profile | None,
    rates: Sequence[float],
) -> Entry:
    mine = findings.of(plan)
    steps = mine.trials[0].steps
    per_step = mine.bytes_per_step
    # A product of what several answers cost is a prediction, and may be far from what this one was seen to do.
    is_known = mine.mean is not None and is_measured(Plan.parse(plan))
    times = extra_steps(Plan.parse(plan)).factor if is_known else None
    clusters = [Cluster.uniform(study.workers, rate * PAYLOAD, LATENCY_S) for rate in rates]
    step_s = [_step_s(plan, compute, cluster) for cluster in clusters]
    return Entry(
        study=study.name,
        task=findings.task.name,
        plan=plan,
        label=label,
        loss=mine.mean,
        spread=mine.spread,
        seeds=len(mine.trials),
        worse_by=None if mine.mean is None else findings.gap(plan, study.dense),
        steps=steps,
        sent_bytes=None if per_step is None else per_step * steps,
        times_steps=times,
        train_s=tuple(None if s is None else s * steps for s in step_s),
        to_loss_s=tuple(None if s is None or times is None else s * steps * times for s in step_s),
    )


def _step_s(plan: str, compute: Profile | None, cluster: Cluster) -> float | None:
    if compute is None:
        return None
    try:
        return predict(plan, compute, cluster).step_s
    except (PlanError, ProgramError):  # what cannot be predicted has no time
        return None


def rows(found: Sequence[Entry], rates: Sequence[float] = RATES) -> list[dict[str, Any]]:
    """Returns the table for `--json`."""
    return [asdict(entry) | {"rates_bytes_per_s": list(rates)} for entry in found]


def markdown(found: Sequence[Entry], rates: Sequence[float] = RATES) -> str:
    """Returns the table as it is kept."""
    parts = [
        "# Loss against bytes and time, all methods",
        "Losses and bytes are measured: means over seeds, after equal steps, every method with the rate that suits it. "
        "Worse by: than dense gradients, over the seeds that both were tried with. Times are predicted by the "
        "simulator for the measured compute of the task's model: of the training, and in brackets to the loss that "
        "dense gradients end with, where a study tells how many steps that takes.",
    ]
    parts += [part for task, table in tables(found, rates) for part in (f"## {task}", aligned(table))]
    return "\n\n".join(parts) + "\n"


def tables(found: Sequence[Entry], rates: Sequence[float] = RATES) -> Iterator[tuple[str, Table]]:
    """Yields each task with its table, head first."""
    for task in dict.fromkeys(entry.task for entry in found):
        head = (
            "method",
            "study",
            TASKS[task].metric,
            "worse by",
            "sent",
            *(print_rate(rate) for rate in rates),
        )
        yield task, [head, *(_cells(entry) for entry in found if entry.task == task)]


def _cells(entry: Entry) -> tuple[str, ...]:
    return (
        entry.label,
        entry.study,
        _loss(entry),
        "" if entry.worse_by is None else f"{entry.worse_by:+z.2%}",
        "" if entry.sent_bytes is None else print_size(entry.sent_bytes),
        *(_time(*pair) for pair in zip(entry.train_s, entry.to_loss_s, strict=True)),
    )


def _loss(entry: Entry) -> str:
    if entry.loss is None:
        return "diverged"
    return f"{entry.loss:.4f}" + (f" ± {entry.spread:.4f}" if entry.seeds > 1 else "")


def _time(train_s: float | None, to_loss_s: float | None) -> str:
    if train_s is None:
        return ""
    return f"{train_s:.1f} s" + ("" if to_loss_s is None else f" ({to_loss_s:.1f})")
