"""The four answers of a plan: what every member is, and what each answer tells the other three.

An answer is a *member* of a family, or for compression several: a frozen dataclass whose fields are the arguments of
its text form, in order, and whose class says what it is and where it comes from. Members live in their family's
package and complete these contracts there; this file knows none of them by name.

A member that must know something of another axis asks a capability declared here, which has a default, so that no
family imports a later one and nothing is probed for.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from tightwire.units import print_bytes

# What arrives of a bucket: every element whole (`exact`); chosen elements, whole or rounded, while the others are left
# over bit for bit (`selected`); something of every element (`rounded`); or which way most workers point (`voted`).
Delivery = Literal["exact", "selected", "rounded", "voted"]

Axis = Literal["sync", "architecture", "compression", "schedule"]

DEFAULTS: dict[Axis, str] = {
    "sync": "bsp",
    "architecture": "allreduce",
    "compression": "none",
    "schedule": "fusion",
}


@dataclass(frozen=True, kw_only=True)
class Rate:
    """How fast a method is proven to converge; T counts steps, n workers.

    Attributes:
        bound: of the mean squared norm of the gradient, E‖∇f‖², unless it says of what.
        assumes: of the loss, the gradients and the settings.
        speed_up: how many workers' worth of progress n workers make.
        paper: where it is proven, with the theorem.
    """

    bound: str
    assumes: str
    speed_up: str
    paper: str


@dataclass(frozen=True)
class Member:
    """One answer, or one stage of it. Subclasses are frozen dataclasses and final.

    A subclass's fields are its arguments: `int`, `float`, `str`, `bool` or `Seconds`, with bounds checked in
    `__post_init__` by raising `PlanError`. A field whose name ends in `_bytes` is written with a byte unit, a
    keyword-only one always with its name.
    """

    name: ClassVar[str]
    axis: ClassVar[Axis]
    title: ClassVar[str]
    paper: ClassVar[str]
    # What is proven of its convergence; None where its paper and those after it prove nothing that applies.
    proven: ClassVar[Rate | None] = None
    # What its paper says that it gives, in a sentence, and what studies here show of that, with the reason where they
    # differ; empty: no study shows it.
    promise: ClassVar[str] = ""
    seen: ClassVar[str] = ""
    # A text that shows the member in use, where its bare name cannot stand alone.
    example: ClassVar[str] = ""
    # What its first argument may be that is known by that name alone, as ring is of allreduce:ring.
    variants: ClassVar[tuple[str, ...]] = ()
    # The field that `other=value` is the value `other:value` of, as in `choco:topk=0.01`.
    shorthand: ClassVar[str] = ""

    def refusal(self, plan: Answers) -> Refusal | None:
        """Says why this member cannot work in `plan`, or None when it can."""
        return None

    def __str__(self) -> str:
        return self._text

    @functools.cached_property
    def _text(self) -> str:
        """The text form; searches print the same few members thousands of times."""
        return self.name + _print_arguments(self)


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why a plan cannot work, and the nearest legal ones (each a plan's text)."""

    reason: str
    nearest: tuple[str, ...]

    def __str__(self) -> str:
        return self.reason + (f"\nNearest legal: {', or '.join(self.nearest)}." if self.nearest else "")


@dataclass(frozen=True)
class SyncAnswer(Member):
    """When replicas agree; `tightwire.sync.Sync` completes it.

    Class attributes:
        is_served: whether a server decides who goes on when.
    """

    axis: ClassVar[Axis] = "sync"
    is_served: ClassVar[bool] = False


@dataclass(frozen=True)
class ArchitectureAnswer(Member):
    """Who talks to whom; `tightwire.architecture.Architecture` completes it.

    Class attributes:
        has_server: whether somebody is there to tell workers when to go on.
    """

    axis: ClassVar[Axis] = "architecture"
    has_server: ClassVar[bool] = False

    @property
    def agrees(self) -> bool:
        """Whether all workers hold the same mean after a round, as under all-reduce and behind a server."""
        return True

    @property
    def asynchronous(self) -> bool:
        """Whether workers may go on without waiting for others."""
        return False

    @property
    def engine(self) -> str:
        """What carries plans out at run time in the place of the policy's engine; empty: that."""
        return ""

    @property
    def has_halves(self) -> bool:
        """Whether its exchange is a reduce-scatter and an all-gather that may be moved apart."""
        return False


@dataclass(frozen=True)
class CompressionAnswer(Member):
    """What is sent: a sender (codec or method) and the stages around it; `tightwire.compression` completes it.

    Class attributes:
        lossless: whether the mean is exact up to rounding.
        unbiased: whether the mean's expectation is the exact mean, so that leftovers may be dropped.
        votes: whether what comes out stands for the mean without being one: its size is the same whatever the size of
            what came in, nothing is left over, and the law of the mean does not hold.
        keeps_optimizer: whether the user's optimizer may stay as it is: votes and signs need a learning rate of their
            own, and momenta that are sent take the place of the optimizer's.
        serves_dense: of a stage, whether it does anything where nothing is left over.
        weighs: whether a worker that brings several times as much counts for as many in what comes out: of votes and of
            medians it does not.
    """

    axis: ClassVar[Axis] = "compression"
    lossless: ClassVar[bool] = False
    unbiased: ClassVar[bool] = False
    votes: ClassVar[bool] = False
    keeps_optimizer: ClassVar[bool] = True
    serves_dense: ClassVar[bool] = False
    weighs: ClassVar[bool] = True

    def expand(self) -> tuple[CompressionAnswer, ...]:
        """Returns what a plan holds in its place: itself, unless it is a name for several."""
        return (self,)

    def is_sized(self, shape: tuple[int, ...]) -> bool:
        """Whether what comes out for a tensor of this shape has a size of its own, whoever brings nothing."""
        return False


@dataclass(frozen=True)
class Sender(CompressionAnswer):
    """What makes the messages: a codec, whose messages any program may carry, or a method with an exchange of its own.

    Class attributes:
        wire_version: of its messages' format, to be raised with every change of what bytes mean: ranks that have
            different ones must not meet, and messages carry no header that would tell.
        prior_passes: passes over memory that encoding an element takes where nobody measured it, and decoding as many.
        on_host: whether it has no kernels but the host's: a bucket on another device is copied there, and back.
        absolute: whether it holds values to a size of its own, or remembers them: a loss scale is taken off before.
    """

    wire_version: ClassVar[int] = 1
    prior_passes: ClassVar[float] = 2.0
    on_host: ClassVar[bool] = False
    absolute: ClassVar[bool] = False


@dataclass(frozen=True)
class ScheduleAnswer(Member):
    """In which order; `tightwire.schedule.Schedule` completes it.

    Class attributes:
        overlaps_forward: whether means may be under way while the next forward runs.
        measures: whether it decides by measured times, and so begins with a few rounds of watching.
    """

    axis: ClassVar[Axis] = "schedule"
    overlaps_forward: ClassVar[bool] = False
    measures: ClassVar[bool] = False


class Answers(Protocol):
    """What a member sees of the plan it is part of."""

    @property
    def sync(self) -> SyncAnswer:
        """When replicas agree."""

    @property
    def architecture(self) -> ArchitectureAnswer:
        """Who talks to whom."""

    @property
    def compression(self) -> tuple[CompressionAnswer, ...]:
        """What is sent: the sender, then the stages around it from the inside out."""

    @property
    def schedule(self) -> ScheduleAnswer:
        """In which order."""

    @property
    def compression_text(self) -> str:
        """The compression answer alone, stages joined by `+`."""


def text_with(plan: Answers, **answers: str) -> str:
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


def _print_arguments(member: Member) -> str:
    """Prints the first argument by position and all others by name; defaults are left out."""
    printed: list[str] = []
    for position, f in enumerate(dataclasses.fields(member)):
        value = vars(member)[f.name]
        if value == f.default:
            continue
        text = print_bytes(value) if f.name.endswith("_bytes") else _print_value(value)
        printed.append(text if position == 0 and not f.kw_only else f"{f.name}={text}")
    return ":" + ",".join(printed) if printed else ""


def _print_value(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text.replace("e+", "e")  # 1e+16: a plus joins stages
