"""A plan is four answers: when replicas agree, who talks to whom, what is sent, in which order.

Its text form is `sync/architecture/compression/schedule`. An answer is a *member*, written
`name[:arg][,key=value]`; compression may have several stages joined by `+`; trailing answers may be left out.

    bsp                                        everything else by default
    bsp/allreduce:ring/bf16/fusion:4MiB
    local:8/allreduce/topk:0.01+ef
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

from tightwire import files
from tightwire.answers import DEFAULTS, CompressionAnswer, Member, Refusal, Sender, text_with
from tightwire.architecture import Architecture
from tightwire.catalogue import parse_compression, parse_member
from tightwire.compression.stage import sender_of
from tightwire.errors import FileError, PlanError
from tightwire.schedule import Schedule
from tightwire.sync import Sync


@dataclass(frozen=True)
class Plan:
    """Four answers that go together; building an illegal combination raises `PlanError`.

    >>> Plan.parse("bsp/allreduce:ring/topk:0.01")
    Traceback (most recent call last):
    ...
    tightwire.errors.PlanError: topk:0.01 cannot travel by ring: its messages have no elementwise sum.
    Nearest legal: bsp/allreduce:allgather/topk:0.01.
    """

    sync: Sync
    architecture: Architecture
    compression: tuple[CompressionAnswer, ...]
    schedule: Schedule

    def __post_init__(self) -> None:
        if refusal := _refusal(self):
            nearest = tuple(_nearest_legal(refusal, set()))
            raise PlanError(str(dataclasses.replace(refusal, nearest=nearest)))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads the text form.

        Raises:
            PlanError: a part that cannot be read, a name nobody has, or a combination that cannot work.
        """
        return cls(**_parse_answers(text))

    @classmethod
    def legal(cls, text: str) -> Plan | None:
        """Reads the text form; None where its members do not go together, and nothing is looked for in their place.

        Raises:
            PlanError: a part that cannot be read, or a name nobody has.
        """
        plan = _unchecked(text)
        return None if _refusal(plan) else plan

    @property
    def sender(self) -> Sender:
        """What makes the messages: the codec, or the method with an exchange of its own."""
        return sender_of(self.compression)

    def __str__(self) -> str:
        return text_with(self)

    @property
    def compression_text(self) -> str:
        """The compression answer alone, stages joined by `+`."""
        return "+".join(map(str, self.compression))

    def members(self) -> Iterator[Member]:
        """Yields every member, in the order of the text form."""
        yield from (self.sync, self.architecture, *self.compression, self.schedule)

    def having(self, **answers: Member | tuple[CompressionAnswer, ...]) -> Plan:
        """Returns this plan with some answers replaced."""
        return dataclasses.replace(self, **answers)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Phases:
    """Plans that follow one another, each until a step: one value instead of settings that must agree.

    Attributes:
        plans: at least one.
        ends: the last step of each plan but the last; steps are counted from 1.

    >>> str(Phases.parse("bsp@500~local:8/allreduce/topk:0.01+ef").at(501))
    'local:8/allreduce/topk:0.01+ef'
    """

    plans: tuple[Plan, ...]
    ends: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `plan@step~plan@step~plan`; a plan alone is one phase.

        Raises:
            PlanError: a phase without a last step, steps that do not grow, or a plan that cannot work.
        """
        *before, last = (phase.strip().rpartition("@") for phase in text.split("~"))
        ends = [int(end) if end.isdigit() else 0 for _, _, end in before]
        grow = all(a < b for a, b in itertools.pairwise([0, *ends]))
        if last[1] or not grow:
            raise PlanError(
                f"{text!r} does not say until when: every phase but the last ends with @ and its last step, and these "
                "grow, as in bsp@500~local:8."
            )
        plans = [*(plan for plan, _, _ in before), last[2]]
        return cls(tuple(map(Plan.parse, plans)), tuple(ends))

    def __str__(self) -> str:
        texts = [f"{plan}@{end}" for plan, end in zip(self.plans, self.ends, strict=False)]
        return "~".join([*texts, str(self.plans[-1])])

    def at(self, step: int) -> Plan:
        """Returns the plan under which a step is made."""
        return self.plans[sum(end < step for end in self.ends)]


def _parse_answers(text: str) -> dict[str, Any]:
    parts = text.strip().split("/")
    if len(parts) > len(DEFAULTS) or not all(parts):
        raise PlanError(
            f"{text!r} is not a plan: seen {len(parts)} parts, one of them empty or too many; "
            "write sync/architecture/compression/schedule, for example bsp/allreduce:ring/bf16/mgwfbp."
        )
    answers = dict(DEFAULTS) | dict(zip(DEFAULTS, parts, strict=False))
    return {
        axis: parse_compression(answer) if axis == "compression" else parse_member(axis, answer)
        for axis, answer in answers.items()
    }


def _refusal(plan: Plan) -> Refusal | None:
    """Returns the first member's objection."""
    return next(filter(None, (member.refusal(plan) for member in plan.members())), None)


def _unchecked(text: str) -> Plan:
    plan = object.__new__(Plan)
    plan.__dict__.update(_parse_answers(text))
    return plan


def _nearest_legal(refusal: Refusal, seen: set[str]) -> Iterator[str]:
    """Follows what a member proposes, blind to the other members' objections, to plans that are legal."""
    for text in refusal.nearest:
        if text in seen:
            continue
        seen.add(text)
        proposed = _unchecked(text)
        if further := _refusal(proposed):
            yield from _nearest_legal(further, seen)
        else:
            yield text


@dataclass(frozen=True, kw_only=True)
class Route:
    """Sends the parameters whose name matches a glob by another compression.

    Attributes:
        match: shell-style pattern over parameter names, such as `*.bias`.
        compression: the compression answer for them, such as `none`.
    """

    __pydantic_config__: ClassVar = files.STRICT

    match: str
    compression: str


@dataclass(frozen=True, kw_only=True)
class PlanFile:
    """A plan with its exceptions, the measurements it was derived from, and the reasons.

    Attributes:
        plan: the text form, of one plan or of phases.
        why: one sentence per decision; first in the file, for those who open it.
        routing: exceptions by parameter name, each of some parameter; the first match wins.
        predicted: the prediction it was chosen by.
        measured: the profile and the cluster that the plan was derived from.
        version: of this format.
    """

    __pydantic_config__: ClassVar = files.STRICT

    plan: str
    why: tuple[str, ...] = ()
    routing: tuple[Route, ...] = ()
    predicted: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)
    version: Literal[1] = 1

    @classmethod
    def read(cls, path: str | pathlib.Path) -> PlanFile:
        """Reads and checks a plan file: its fields, its plan and its routes.

        Raises:
            FileError: unreadable, or a field that is wrong, named.
            PlanError: a plan or a route that cannot work.
        """
        if not pathlib.Path(path).exists():
            raise FileError(
                f"plan file {path} cannot be read: no such file in {pathlib.Path(path).absolute().parent}. Make it by "
                f"`tightwire plan … --out {path}`, mend the path, or give a plan's text, such as bsp."
            )
        plan_file = files.read(path, cls)
        try:
            plan_file.phases()
        except PlanError as error:
            raise PlanError(f"{path}: {files.shortened(str(error), 600)}") from None
        return plan_file

    def parse(self) -> Plan:
        """Reads the plan, and checks that every route may be taken under it.

        Raises:
            PlanError: a plan or a route that cannot work.
        """
        phases = self.phases()
        if len(phases.plans) > 1:
            raise PlanError(f"{self.plan} has {len(phases.plans)} phases, where one plan is asked for.")
        return phases.plans[0]

    def phases(self) -> Phases:
        """Reads the plans that follow one another, and checks that every route may be taken under each.

        Raises:
            PlanError: a plan or a route that cannot work.
        """
        phases = Phases.parse(self.plan)
        for plan, route in itertools.product(phases.plans, self.routing):
            try:
                plan.having(compression=parse_compression(route.compression))
            except PlanError as error:
                raise PlanError(f"the route of {route.match}: {error}") from None
        return phases

    def write(self, path: str | pathlib.Path) -> None:
        """Writes the file as YAML, to be read, diffed and edited by hand."""
        files.write(path, self)
