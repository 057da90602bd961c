"""A study as a value: which plans are compared, on which tasks and scenes, and what the literature claims of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from tightwire.catalogue import catalogue
from tightwire.errors import LabError
from tightwire.plan import Plan
from tightwire.study.claims import Claim
from tightwire.study.settings import TrainingSettings, settings_for
from tightwire.study.task import Split, Task
from tightwire.study.tasks import Digits, Images, Language

DDP, DDP_POWERSGD = "ddp", "ddp+powersgd:4"
STOCK = (DDP, DDP_POWERSGD)
ANY = -1  # rank
TASKS: dict[str, Task] = {task.name: task for task in (Digits(), Images(), Language())}


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The circumstances of training, the same for every plan.

    Attributes:
        name: in results and claims.
        split: how data is shared among workers.
        workers: where it is not the study's number of them.
        rate_bytes_per_s: of each worker's link, each way; None for loopback as it is.
        wait_s: emulated compute: every step begins with a wait of this long, which uses no processor.
        slow_rank: a worker that waits longer at times; −1: any one at a time, drawn anew for every step; None for none.
        slow_factor: how much longer.
        slow_share: of the steps in which somebody does, drawn at random.
        snapshots: of the mean model at regular steps, judged when time is up; 0 for the last one alone.
        length: of training, as a share of the task's steps.
        least_steps: so many at least, of those that the task has.
        plans: that are compared here, where it is not all of the study's; empty: all.
        settings: by task, with which all plans train here; where a task is missing, each trains with its own.
        tasks: that are trained here, where it is not all of the study's; empty: all.
        rate: by which learning rates are multiplied, where they are sought.
        has_own_rates: whether learning rates are sought here, too: where who is late, or how long training is, bears on
            what a method can take.
        is_asked_for: whether somebody asked for this rate in place of the study's own: trials at it are others.
    """

    name: str = "plain"
    split: Split = "alike"
    workers: int | None = None
    rate_bytes_per_s: float | None = None
    wait_s: float = 0.0
    slow_rank: int | None = None
    slow_factor: float = 3.0
    slow_share: float = 0.5
    snapshots: int = 0
    length: float = 1.0
    least_steps: int = 0
    plans: tuple[str, ...] = ()
    settings: Mapping[str, TrainingSettings] = field(default_factory=dict)
    tasks: tuple[str, ...] = ()
    rate: float = 1.0
    has_own_rates: bool = False
    is_asked_for: bool = False

    def __post_init__(self) -> None:
        if self.wait_s < 0 or not 0 <= self.slow_share <= 1 or self.snapshots < 0 or not 0 < self.length <= 1:
            raise LabError(
                f"a scene cannot be like this: {self}; times are not negative, shares are in [0, 1]."
            )
        if self.slow_rank is not None and not self.wait_s:
            raise LabError(
                f"scene {self.name} has a slow worker and no wait_s to slow down: give one above 0."
            )

    @property
    def is_timed(self) -> bool:
        """Whether seconds mean something here: lines have a rate, or compute is emulated."""
        return self.rate_bytes_per_s is not None or self.wait_s > 0

    def at(self, rate_bytes_per_s: float) -> Scene:
        """Returns this scene with links of a rate that was asked for."""
        is_other = rate_bytes_per_s != self.rate_bytes_per_s
        return dataclasses.replace(self, rate_bytes_per_s=rate_bytes_per_s, is_asked_for=is_other)

    def steps(self, task: Task) -> int:
        """Returns how long a task is trained here."""
        return max(1, round(task.steps * self.length), min(self.least_steps, task.steps))

    def settings_for(self, task: str, plan: str) -> TrainingSettings:
        """Returns with which optimizer a plan trains here."""
        place = self.name.partition(" rate × ")[0] if self.has_own_rates else ""
        found = self.settings.get(task) or settings_for(task, plan, place)
        return found if self.rate == 1.0 else dataclasses.replace(found, lr=found.lr * self.rate)


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
        first_seed: of those that are tried: rates are sought on seeds of their own.
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
    first_seed: int = 0

    def __post_init__(self) -> None:
        for plan in self.plans:
            if plan not in STOCK:
                Plan.parse(plan)

    @property
    def trials(self) -> int:
        """How many trials one seed takes."""
        return sum(len(self.tasks_in(scene)) * len(self.plans_in(scene)) for scene in self.scenes)

    def tasks_in(self, scene: Scene) -> tuple[Task, ...]:
        """Returns the tasks that are trained in a scene."""
        return tuple(task for task in self.tasks if task.name in scene.tasks or not scene.tasks)

    def plans_in(self, scene: Scene) -> tuple[str, ...]:
        """Returns the plans that are compared in a scene."""
        return tuple(plan for plan in self.plans if plan in scene.plans or not scene.plans)

    def workers_in(self, scene: Scene) -> int:
        """Returns how many workers train in a scene."""
        return scene.workers or self.workers

    def narrowed(
        self,
        *,
        tasks: Sequence[str] = (),
        scenes: Sequence[str] = (),
        plans: Sequence[str] = (),
        steps: int | None = None,
        rate_bytes_per_s: float | None = None,
    ) -> Study:
        """Returns the study of some tasks, scenes and plans alone; plans may be others than its own.

        Raises:
            LabError: names a task or a scene that the study does not have.
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
        present = {scene.name: scene for scene in self.scenes}
        if unknown := [name for name in scenes if name not in present]:
            raise LabError(
                f"study {self.name} has no scene {', '.join(map(repr, unknown))}; it has "
                f"{', '.join(map(repr, present))}."
            )
        kept = tuple(present[name] for name in scenes) or self.scenes
        if rate_bytes_per_s is not None:
            kept = tuple(s.at(rate_bytes_per_s) for s in kept)
        if steps is not None:
            kept = tuple(dataclasses.replace(s, length=1.0) for s in kept)
        if plans:
            kept = tuple(dataclasses.replace(s, plans=()) for s in kept)
        return dataclasses.replace(
            self,
            tasks=chosen,
            scenes=kept,
            plans=tuple(dict.fromkeys([self.dense, *map(full_text, plans)])) if plans else self.plans,
        )


def split_names(text: str, known: Collection[str]) -> tuple[str, ...]:
    """Returns names that are separated by commas, where those that are known may hold commas too.

    >>> split_names("plain,unlike, no momentum", ["plain", "unlike", "unlike, no momentum"])
    ('plain', 'unlike, no momentum')
    """
    parts, names = text.split(",") if text else [], list[str]()
    while parts:
        ends = range(len(parts), 0, -1)
        end = next((end for end in ends if ",".join(parts[:end]).strip() in known), 1)
        names.append(",".join(parts[:end]).strip())
        del parts[:end]
    return tuple(filter(None, names))


def dense_scenes(
    plans: Sequence[str], dense: str, tasks: Sequence[Task] = tuple(TASKS.values())
) -> list[Scene]:
    """Returns a scene for every optimizer and rate that plans train with and dense gradients do not, for those to.

    What a method loses is then told apart from what its optimizer does.
    """
    users: dict[TrainingSettings, list[str]] = {}
    for task in tasks:
        for settings in dict.fromkeys(settings_for(task.name, plan) for plan in plans):
            if settings != settings_for(task.name, dense):
                users.setdefault(settings, []).append(task.name)
    return [
        Scene(
            name=dense_scene(settings),
            plans=(dense,),
            tasks=tuple(names),
            settings=dict.fromkeys(names, settings),
        )
        for settings, names in users.items()
    ]


def dense_scene(settings: TrainingSettings) -> str:
    """Returns the name of the scene in which dense gradients train with some settings."""
    return f"dense with {settings}"


def full_text(plan: str) -> str:
    """Returns a plan's one text; a compression alone is taken in one bucket under bsp, which is quickest here.

    >>> full_text("topk:0.01+ef"), full_text("bsp/allreduce/none/fusion")
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
