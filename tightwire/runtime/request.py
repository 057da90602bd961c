"""What a caller of `attach` asks for: the plan in any of its forms, read, and refused where it cannot work."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import pathlib
from dataclasses import dataclass
from typing import Literal, Self

from tightwire import files
from tightwire.architecture import AllReduce, ParameterServer, Wiring, synthesise
from tightwire.catalogue import parse_compression
from tightwire.cluster import Cluster
from tightwire.cluster.wiring import wiring_of
from tightwire.errors import AttachError
from tightwire.files import own_version
from tightwire.plan import Phases, Plan, PlanFile
from tightwire.planner import Allowance
from tightwire.runtime.agreement import wire_facts
from tightwire.runtime.first_steps import WATCHED
from tightwire.runtime.phases import spelled_out
from tightwire.runtime.race import Race
from tightwire.schedule import Auto
from tightwire.sync import Rounds
from tightwire.transport import switch, workers_per_node

PlanLike = Plan | Phases | PlanFile | Race | str | pathlib.Path
Buffers = Literal["start", "every-step"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """A plan as it was asked for.

    Attributes:
        plan_file: the plan, with its routes, and what it was derived from.
        phases: in force; of `auto` and a race what the first steps are watched under.
        race: asked for, if any.
        is_auto: whether the plan is found while training.
        allow: what a plan that is found may change about training.
    """

    plan_file: PlanFile
    phases: Phases
    race: Race | None
    is_auto: bool
    allow: Allowance

    @classmethod
    def read(cls, plan: PlanLike, allow: Allowance) -> Self:
        """Reads a plan in any of its forms.

        Raises:
            PlanError: it cannot be.
            FileError: a plan file that cannot be read.
        """
        race = plan if isinstance(plan, Race) else Race.parse(plan) if isinstance(plan, str) else None
        if isinstance(plan, Race) or race is not None or plan == "auto":
            plan_file, is_auto = PlanFile(plan=WATCHED), True
        else:
            plan_file, is_auto = _read(plan), False
        phases = plan_file.phases()
        spelled_out(phases)
        return cls(plan_file=plan_file, phases=phases, race=race, is_auto=is_auto, allow=allow)

    @property
    def name(self) -> str:
        """What all ranks must have asked for alike."""
        if not self.is_auto:
            return str(self.phases)
        if self.race is None:
            return f"auto, {self.allow}"
        judged = "" if self.race.judge is None else ", judged"
        return (
            f"race of {self.race.budget}, {self.race.share:g}, {self.race.contenders}, {self.allow}{judged}"
        )

    def begun(self, watched: str) -> Request:
        """Returns this request, whose first steps are watched under a plan."""
        return dataclasses.replace(self, phases=Phases.parse(watched))

    def settled(self, plan_file: PlanFile) -> Request:
        """Returns this request with the plan that was found for it."""
        return dataclasses.replace(self, plan_file=plan_file, phases=plan_file.phases())

    def facts(self, num_ranks: int) -> dict[str, object]:
        """Returns what must be equal on all ranks.

        Raises:
            PlanError: a switch that adds, and there is none.
        """
        facts: dict[str, object] = {
            "version of tightwire": own_version(),
            "plan": self.name,
            "routing": self.plan_file.routing,
            "measured costs of programs": self.costs,
            "program that is made for the cluster's links": self._digest(),
        }
        if any(plan.architecture.is_levelled for plan in self.phases.plans):
            facts["workers per node (LOCAL_WORLD_SIZE)"] = workers_per_node()
        if num_ranks > 1:
            for program in self._programs():
                if program.is_switched:
                    facts["switch that adds"] = program.require_switch(switch()).address
        compressions = [
            *(plan.compression for plan in self.phases.plans),
            *(parse_compression(route.compression) for route in self.plan_file.routing),
        ]
        return facts | wire_facts(compressions)

    @functools.cached_property
    def costs(self) -> dict[str, tuple[float, float]]:
        """What programs took on the cluster that a plan file was derived from, which all ranks read alike."""
        cluster = self.plan_file.measured.get("cluster")
        fits = cluster.get("fits", ()) if isinstance(cluster, dict) else ()
        return {
            fit["program"]: (fit["alpha_s"], fit["beta_s_per_byte"])
            for fit in fits
            if fit.get("source") == "measured"
        }

    @functools.cached_property
    def wiring(self) -> Wiring | None:
        """Links of the cluster that a plan file was derived from, where a program is made for them."""
        cluster = self.plan_file.measured.get("cluster")
        if cluster is None or not any(program.is_made for program in self._programs()):
            return None
        return wiring_of(files.check(cluster, Cluster, "the plan file's cluster"))

    @property
    def predicted(self) -> dict[str, int | float]:
        """What the plan file predicts, as numbers."""
        return {
            name: value for name, value in self.plan_file.predicted.items() if isinstance(value, int | float)
        }

    def require_possible(self, *, num_ranks: int | None, buffers: Buffers) -> None:
        """Makes sure that these workers can carry out the plan.

        Args:
            num_ranks: None where members come and go.
            buffers: as they are to be kept.

        Raises:
            PlanError: as many servers as processes.
            AttachError: a plan that members who come and go cannot carry out, or buffers that it cannot keep so.
        """
        if num_ranks is None:
            _require_elastic(self.phases, races=self.race is not None)
        for plan in self.phases.plans:
            require_servable(plan, num_ranks, buffers)

    def _programs(self) -> list[AllReduce]:
        architectures = (plan.architecture for plan in self.phases.plans)
        return [architecture for architecture in architectures if isinstance(architecture, AllReduce)]

    def _digest(self) -> str:
        """Returns a digest of the program that this rank makes for the links: another version may make another one."""
        if self.wiring is None:
            return "none"
        transfers = repr(synthesise(self.wiring).program.transfers).encode()
        return hashlib.sha256(transfers).hexdigest()[:16]


def _require_elastic(chosen: Phases, *, races: bool) -> None:
    """Makes sure that a plan can be carried out by members who come and go.

    Raises:
        AttachError: it is found by trials, or needs whole nodes.
    """
    if races or any(isinstance(plan.schedule, Auto) for plan in chosen.plans):
        what = "a race" if races else "schedule auto"
        raise AttachError(
            f"tightwire.init(elastic=True) was asked for with {what}, whose trials would begin anew with whoever comes "
            'or goes; let plan="auto" choose by what it predicts, or find a plan without elastic=True and name it.'
        )
    if levelled := [str(plan) for plan in chosen.plans if _needs_nodes(plan)]:
        raise AttachError(
            f"tightwire.init(elastic=True) was asked for with {levelled[0]}, which needs whole nodes, and workers come "
            "and go alone; choose local:8 or diloco:30, or a program without levels, such as bsp/allreduce:ring, or "
            "give it a shape, which counts while there are so many workers."
        )


def _needs_nodes(plan: Plan) -> bool:
    return plan.architecture.needs_nodes or (isinstance(plan.sync, Rounds) and plan.sync.steps_inside > 0)


def require_servable(plan: Plan, num_ranks: int | None, buffers: Buffers) -> None:
    """Makes sure that servers leave somebody to train, and that nothing has workers meet who need not.

    Args:
        plan: to be carried out.
        num_ranks: None where members come and go.
        buffers: as they are to be kept.

    Raises:
        PlanError: as many servers as processes.
        AttachError: buffers that are to be equal after every step.
    """
    architecture = plan.architecture
    is_served = plan.sync.is_served
    if isinstance(architecture, ParameterServer) and architecture.servers:
        if num_ranks is not None:
            architecture.roles(num_ranks)
        is_served = True
    is_served |= isinstance(plan.sync, Rounds) and plan.sync.quorum_of is not None
    if is_served and buffers == "every-step" and num_ranks != 1:
        raise AttachError(
            f"{plan} lets workers go on without each other, and buffers='every-step' has them meet after every step; "
            "leave buffers at 'start'."
        )


def _read(plan: Plan | Phases | PlanFile | str | pathlib.Path) -> PlanFile:
    if isinstance(plan, PlanFile):
        return plan
    if isinstance(plan, pathlib.Path) or str(plan).endswith((".yaml", ".yml")):
        return PlanFile.read(str(plan))
    return PlanFile(plan=str(plan))
