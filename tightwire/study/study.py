"""A study as a value: which plans are compared, on which tasks and scenes, and what the literature claims of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tightwire.errors import LabError
from tightwire.plan import Plan, catalogue
from tightwire.study.claims import Claim
from tightwire.study.digits import Digits
from tightwire.study.language import Language
from tightwire.study.task import Split, Task

DDP, DDP_POWERSGD = "ddp", "ddp+powersgd:4"
STOCK = (DDP, DDP_POWERSGD)
TASKS: dict[str, Task] = {task.name: task for task in (Digits(), Language())}


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The circumstances of training, the same for every plan.

    Attributes:
        name: in results and claims.
        split: how data is shared among workers.
        rate_bytes_per_s: of each worker's link, each way; None for loopback as it is.
        wait_s: emulated compute: every step begins with a wait of this long, which uses no processor.
        slow_rank: a worker that waits longer at times; None for none.
        slow_factor: how much longer.
        slow_share: of its steps in which it does, drawn at random.
        snapshots: of rank 0's model at regular steps, judged when time is up; 0 for the last one alone.
    """

    name: str = "plain"
    split: Split = "alike"
    rate_bytes_per_s: float | None = None
    wait_s: float = 0.0
    slow_rank: int | None = None
    slow_factor: float = 3.0
    slow_share: float = 0.5
    snapshots: int = 0

    def __post_init__(self) -> None:
        if self.wait_s < 0 or not 0 <= self.slow_share <= 1 or self.snapshots < 0:
            raise LabError(
                f"a scene cannot be like this: {self}; times are not negative, shares are in [0, 1]."
            )
        if self.slow_rank is not None and not self.wait_s:
            raise LabError(
                f"scene {self.name} has a slow worker and no wait_s to slow down: give one above 0."
            )


PLAIN = Scene()


@dataclass(frozen=True, kw_only=True)
class Study:
    """An experiment from the literature, to be run here.

    Attributes:
        name: on the command line.
        about: what it asks, in a sentence.
        workers: in the emulated cluster.
        plans: texts of plans, `ddp`, or `ddp+powersgd:4` (stock DDP with the stock hook); all train equally long.
        dense: the plan that the others are compared with.
        tasks: what is learned; each has its number of steps.
        scenes: in which circumstances.
        claims: what the literature says, checked on the results.
        longer: plans that may make more than the task's steps, and how many times as many.
        race: the same asked in another way: time to the dense plan's final metric.
    """

    name: str
    about: str
    workers: int
    plans: tuple[str, ...]
    dense: str
    tasks: tuple[Task, ...] = tuple(TASKS.values())
    scenes: tuple[Scene, ...] = (PLAIN,)
    claims: tuple[Claim, ...] = ()
    longer: Callable[[str], float] = field(default=lambda plan: 1.0)
    race: Study | None = None

    def __post_init__(self) -> None:
        for plan in self.plans:
            if plan not in STOCK:
                Plan.parse(plan)

    @property
    def trials(self) -> int:
        """How many trials one seed takes."""
        return len(self.tasks) * len(self.scenes) * len(self.plans)

    def narrowed(
        self,
        *,
        tasks: Sequence[str] = (),
        plans: Sequence[str] = (),
        steps: int | None = None,
        rate_bytes_per_s: float | None = None,
    ) -> Study:
        """Returns the study of some tasks and plans alone, which may be others than its own.

        Raises:
            LabError: names a task that the study does not have.
            PlanError: a plan that cannot be read or cannot work.
        """
        known = {task.name: task for task in self.tasks}
        if unknown := [name for name in tasks if name not in known]:
            raise LabError(f"study {self.name} has no task {', '.join(unknown)}; it has {', '.join(known)}.")
        chosen = tuple(known[name] for name in tasks) or self.tasks
        if steps is not None:
            if steps < 1:
                raise LabError(f"a study of {steps} steps learns nothing; give at least 1.")
            chosen = tuple(dataclasses.replace(task, steps=steps) for task in chosen)  # type: ignore[type-var]
        scenes = self.scenes
        if rate_bytes_per_s is not None:
            scenes = tuple(dataclasses.replace(s, rate_bytes_per_s=rate_bytes_per_s) for s in scenes)
        return dataclasses.replace(
            self,
            tasks=chosen,
            scenes=scenes,
            plans=tuple(dict.fromkeys([self.dense, *map(full_text, plans)])) if plans else self.plans,
        )


def full_text(plan: str) -> str:
    """Returns a plan's one text; a compression alone is taken in one bucket under bsp, which is quickest here.

    >>> full_text("topk:0.01+ef"), full_text("bsp/allreduce/none/wfbp")
    ('bsp/allreduce/topk:0.01+ef/sequential', 'bsp')
    """
    if plan in STOCK:
        return plan
    name = plan.partition("/")[0].partition(":")[0]
    alone = "/" not in plan and name not in catalogue("sync")
    return str(Plan.parse(f"bsp/allreduce/{plan}/sequential" if alone else plan))


def labels(plans: Sequence[str]) -> Mapping[str, str]:
    """Returns short names: what all plans have in common is left out.

    >>> labels(["bsp", "bsp/allreduce/int8"])
    {'bsp': 'none', 'bsp/allreduce/int8': 'int8'}
    """
    parsed = {plan: Plan.parse(plan) for plan in plans if plan not in STOCK}
    answers = {
        plan: (str(p.sync), str(p.architecture), p.compression_text, str(p.schedule))
        for plan, p in parsed.items()
    }
    differing = [axis for axis in range(4) if len({answer[axis] for answer in answers.values()}) > 1]
    if len(differing) != 1:
        return {plan: plan for plan in plans}
    return {plan: answers[plan][differing[0]] if plan in answers else plan for plan in plans}
