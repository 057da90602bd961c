"""A plan is four answers: when replicas agree, who talks to whom, what is sent, in which order.

Its text form is `sync/architecture/compression/schedule`. An answer is a *member*, written
`name[:arg][,key=value]`; compression may have several stages joined by `+`; trailing answers may be left out.

    bsp                                        everything else by default
    bsp/allreduce:ring/bf16/fusion:4MiB
    local:8/allreduce/topk:0.01+ef

A member is a frozen dataclass: its fields are the arguments of its text form, in order, and its class says what
it is and where it comes from. Members live in their family's package; this file knows none of them by name.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import itertools
import pathlib
import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

from tightwire import files
from tightwire.errors import PlanError

Axis = Literal["sync", "architecture", "compression", "schedule"]

# Where each axis's members are listed, as `MEMBERS`. Looked up by name on first use, so that a family may
# import this file and this file need not import any family.
FAMILIES: dict[Axis, tuple[str, ...]] = {
    "sync": ("tightwire.sync",),
    "architecture": ("tightwire.collectives",),
    "compression": ("tightwire.compression", "tightwire.reducers"),
    "schedule": ("tightwire.schedule",),
}
DEFAULTS: dict[Axis, str] = {
    "sync": "bsp",
    "architecture": "allreduce",
    "compression": "none",
    "schedule": "wfbp",
}
BYTE_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@dataclass(frozen=True)
class Member:
    """One answer, or one stage of it. Subclasses are frozen dataclasses and final.

    A subclass's fields are its arguments: `int`, `float`, `str` or `bool`, with bounds checked in
    `__post_init__` by raising `PlanError`. A field whose name ends in `_bytes` is written with a byte unit, a
    keyword-only one always with its name.
    """

    name: ClassVar[str]
    axis: ClassVar[Axis]
    title: ClassVar[str]
    paper: ClassVar[str]
    # A text that shows the member in use, where its bare name cannot stand alone.
    example: ClassVar[str] = ""
    # The field that `other=value` is the value `other:value` of, as in `choco:topk=0.01`.
    shorthand: ClassVar[str] = ""

    def refusal(self, plan: Plan) -> Refusal | None:
        """Says why this member cannot work in `plan`, or None when it can."""
        return None

    def expand(self) -> tuple[Member, ...]:
        """Returns what a plan holds in its place: itself, unless it is a name for several."""
        return (self,)

    def __str__(self) -> str:
        return self.name + _print_arguments(self)


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why a plan cannot work, and the nearest legal ones (each a plan's text)."""

    reason: str
    nearest: tuple[str, ...]

    def __str__(self) -> str:
        return self.reason + (f"\nNearest legal: {', or '.join(self.nearest)}." if self.nearest else "")


@dataclass(frozen=True)
class Plan:
    """Four answers that go together; building an illegal combination raises `PlanError`.

    >>> Plan.parse("bsp/allreduce:ring/topk:0.01")
    Traceback (most recent call last):
    ...
    tightwire.errors.PlanError: topk:0.01 cannot travel by ring: its messages have no elementwise sum.
    Nearest legal: bsp/allreduce:allgather/topk:0.01.
    """

    sync: Member
    architecture: Member
    compression: tuple[Member, ...]
    schedule: Member

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

    def __str__(self) -> str:
        return text_with(self)

    @property
    def compression_text(self) -> str:
        """The compression answer alone, stages joined by `+`."""
        return "+".join(map(str, self.compression))

    def members(self) -> Iterator[Member]:
        """Yields every member, in the order of the text form."""
        yield from (self.sync, self.architecture, *self.compression, self.schedule)

    def having(self, **answers: Member | tuple[Member, ...]) -> Plan:
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


def text_with(plan: Plan, **answers: str) -> str:
    """Returns the text of `plan` with some answers replaced, whether or not the result is legal."""
    parts = {
        "sync": str(plan.sync),
        "architecture": str(plan.architecture),
        "compression": plan.compression_text,
        "schedule": str(plan.schedule),
    } | answers
    texts, defaults = list(parts.values()), list(DEFAULTS.values())
    while len(texts) > 1 and texts[-1] == defaults[len(texts) - 1]:
        texts.pop()
    return "/".join(texts)


def _parse_answers(text: str) -> dict[str, Any]:
    parts = text.strip().split("/")
    if len(parts) > len(FAMILIES) or not all(parts):
        raise PlanError(
            f"{text!r} is not a plan: seen {len(parts)} parts, one of them empty or too many; "
            "write sync/architecture/compression/schedule, for example bsp/allreduce:ring/bf16/wfbp."
        )
    answers = dict(DEFAULTS) | dict(zip(FAMILIES, parts, strict=False))
    return {
        axis: parse_compression(answer) if axis == "compression" else parse_member(axis, answer)
        for axis, answer in answers.items()
    }


def _refusal(plan: Plan) -> Refusal | None:
    """Returns the first member's objection."""
    return next(filter(None, (member.refusal(plan) for member in plan.members())), None)


def _nearest_legal(refusal: Refusal, seen: set[str]) -> Iterator[str]:
    """Follows what a member proposes, blind to the other members' objections, to plans that are legal."""
    for text in refusal.nearest:
        if text in seen:
            continue
        seen.add(text)
        proposed = object.__new__(Plan)  # unchecked
        proposed.__dict__.update(_parse_answers(text))
        if further := _refusal(proposed):
            yield from _nearest_legal(further, seen)
        else:
            yield text


@functools.cache
def catalogue(axis: Axis) -> Mapping[str, type[Member]]:
    """Returns every member of an axis by name: the one table that lists what exists."""
    families = map(importlib.import_module, FAMILIES[axis])
    return {member.name: member for family in families for member in family.MEMBERS}


def parse_compression(text: str) -> tuple[Member, ...]:
    """Reads stages joined by `+`, as in `topk:0.01+ef`."""
    members = (parse_member("compression", stage) for stage in text.split("+"))
    return tuple(expanded for member in members for expanded in member.expand())


@functools.cache
def parse_member(axis: Axis, text: str) -> Member:
    """Reads `name[:arg][,key=value]` as a member of an axis.

    Raises:
        PlanError: an unknown name (the known ones are listed), an unknown or malformed argument.
    """
    name, _, arguments = text.strip().partition(":")
    known = catalogue(axis)
    if name not in known:
        raise PlanError(
            f"{name!r} is no known {axis}; known: {', '.join(sorted(known))}.{_did_you_mean(name, known)}"
        )
    member = known[name]
    values = _read_arguments(member, arguments, text)
    try:
        return member(**values)
    except PlanError:
        raise
    except (TypeError, ValueError) as error:
        raise PlanError(
            f"{text!r} cannot be built: {error}. Arguments of {name}: {_signature(member)}."
        ) from None


def _did_you_mean(name: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {close[0]}?" if close else ""


def _read_arguments(member: type[Member], arguments: str, text: str) -> dict[str, Any]:
    fields = {f.name: f for f in dataclasses.fields(member)}
    by_position = [f.name for f in fields.values() if not f.kw_only]
    types = typing.get_type_hints(member)
    values: dict[str, Any] = {}
    for position, item in enumerate(arguments.split(",") if arguments else ()):
        key, equals, value = item.partition("=")
        if not equals:
            key, value = (by_position[position] if position < len(by_position) else ""), item
        elif key not in fields and member.shorthand:
            key, value = member.shorthand, f"{key}:{value}"
        if key not in fields or key in values or not value:
            raise PlanError(
                f"{text!r} has an argument {item!r} that {member.name} does not take; it takes {_signature(member)}."
            )
        values[key] = _read_value(types[key], key, value, text)
    return values


def _read_value(kind: Any, key: str, value: str, text: str) -> Any:
    if key.endswith("_bytes"):
        try:
            return parse_bytes(value)
        except ValueError as error:
            raise PlanError(f"{text!r}: {key}={error}.") from None
    try:
        return {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
    except (ValueError, KeyError):
        raise PlanError(f"{text!r}: {key}={value!r} is not {_article(kind.__name__)}.") from None


def _article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def _signature(member: type[Member]) -> str:
    types = typing.get_type_hints(member)
    parts = [
        f"{f.name}: {types[f.name].__name__}"
        + ("" if f.default is dataclasses.MISSING else f" = {f.default}")
        for f in dataclasses.fields(member)
    ]
    return ", ".join(parts) or "no arguments"


def _print_arguments(member: Member) -> str:
    """Prints leading arguments by position while they are set, later ones by name; defaults are left out."""
    printed: list[str] = []
    contiguous = True
    for f in dataclasses.fields(member):
        value = getattr(member, f.name)
        contiguous = contiguous and not f.kw_only
        if value == f.default:
            contiguous = False
            continue
        text = print_bytes(value) if f.name.endswith("_bytes") else _print_value(value)
        printed.append(text if contiguous else f"{f.name}={text}")
    return ":" + ",".join(printed) if printed else ""


def _print_value(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text.replace("e+", "e")  # 1e+16: a plus joins stages


def parse_bytes(text: str) -> int:
    """Reads `4194304`, `4MiB` or `25MB` as a number of bytes.

    Raises:
        ValueError: not a whole number with one of the known units.
    """
    match = re.fullmatch(r"([0-9]+)([A-Za-z]*)", text.strip())
    if not match or match[2] not in BYTE_UNITS:
        raise ValueError(
            f"{text!r} is no size; write a whole number and one of {', '.join(u for u in BYTE_UNITS if u)}"
        )
    return int(match[1]) * BYTE_UNITS[match[2]]


def print_bytes(num_bytes: int) -> str:
    """Prints a size with the largest unit that divides it: `4MiB`, `25MB`, `1000003`."""
    units = sorted(BYTE_UNITS.items(), key=lambda unit: -unit[1])
    unit, size = next((u, s) for u, s in units if (num_bytes and num_bytes % s == 0) or s == 1)
    return f"{num_bytes // size}{unit if size > 1 else ''}"


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
        routing: exceptions by parameter name; the first match wins.
        measured: the profile and the cluster that the plan was derived from.
        predicted: the prediction it was chosen by.
        why: one sentence per decision.
        version: of this format.
    """

    __pydantic_config__: ClassVar = files.STRICT

    plan: str
    routing: tuple[Route, ...] = ()
    measured: dict[str, Any] = field(default_factory=dict)
    predicted: dict[str, Any] = field(default_factory=dict)
    why: tuple[str, ...] = ()
    version: Literal[1] = 1

    @classmethod
    def read(cls, path: str | pathlib.Path) -> PlanFile:
        """Reads and checks a plan file: its fields, its plan and its routes.

        Raises:
            FileError: unreadable, or a field that is wrong, named.
            PlanError: a plan or a route that cannot work.
        """
        plan_file = files.read(path, cls)
        plan_file.phases()
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
