"""Members by name: the one table that lists what exists, and the reading of `name[:arg][,key=value]`."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import os
import sys
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from tightwire.answers import Axis, CompressionAnswer, Member
from tightwire.errors import PlanError
from tightwire.units import Seconds, parse_bytes

AnyMember = TypeVar("AnyMember", bound=Member)

# Where each axis's members are listed, as `MEMBERS`. Looked up by name on first use, so that a family may
# import this file and this file need not import any family.
FAMILIES: dict[Axis, tuple[str, ...]] = {
    "sync": ("tightwire.sync",),
    "architecture": ("tightwire.architecture",),
    "compression": ("tightwire.compression", "tightwire.architecture.gossip.stages", "tightwire.averaging"),
    "schedule": ("tightwire.schedule",),
}


# As many names are listed where one is unknown.
_FEW = 16
_registered: list[type[Member]] = []


def register(member: type[AnyMember]) -> type[AnyMember]:
    """Adds a member from outside this package to the catalogue: plans, `methods`, planner and benches then know it.

    A class decorator; members inside the package are a line in their family's `MEMBERS` instead. Every rank must
    register the same.

    Registered once more, as when a cell of a notebook runs again, a class takes the place of what it was.

    Raises:
        PlanError: a name that the axis has already.
    """
    before = [other for other in _registered if _same_class(other, member)]
    if member.name in catalogue(member.axis) and catalogue(member.axis)[member.name] not in before:
        raise PlanError(
            f"{member.name!r} is a known {member.axis} already; give {member.__name__} another name."
        )
    _registered[:] = [*(other for other in _registered if other not in before), member]
    catalogue.cache_clear()
    parse_member.cache_clear()
    return member


def _same_class(one: type[Member], other: type[Member]) -> bool:
    """Whether two classes come from the same lines: a script that another imports is two modules."""
    return one.__qualname__ == other.__qualname__ and (
        one.__module__ == other.__module__ or _file_of(one) == _file_of(other) != ""
    )


def _file_of(member: type[Member]) -> str:
    file = vars(sys.modules.get(member.__module__, object)).get("__file__")
    return os.path.realpath(file) if isinstance(file, str) else ""


def is_from_outside(member: Member) -> bool:
    """Whether a member's class was registered, and is not part of this package."""
    return type(member) in _registered


@functools.cache
def catalogue(axis: Axis) -> Mapping[str, type[Member]]:
    """Returns every member of an axis by name: the one table that lists what exists."""
    families = map(importlib.import_module, FAMILIES[axis])
    own = [member for family in families for member in family.MEMBERS]
    return {member.name: member for member in (*own, *(m for m in _registered if m.axis == axis))}


def parse_compression(text: str) -> tuple[CompressionAnswer, ...]:
    """Reads stages joined by `+`, as in `topk:0.01+ef`."""
    members = (parse_member("compression", stage) for stage in text.split("+"))
    return tuple(
        part for member in members if isinstance(member, CompressionAnswer) for part in member.expand()
    )


@functools.cache
def parse_member(axis: Axis, text: str) -> Member:
    """Reads `name[:arg][,key=value]` as a member of an axis.

    Raises:
        PlanError: an unknown name (those near it are named), an unknown or malformed argument.
    """
    name, _, arguments = text.strip().partition(":")
    known = catalogue(axis)
    if name not in known:
        raise PlanError(f"{name!r} is no known {axis}; {_elsewhere(axis, name, text) or near(name, known)}")
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


def _elsewhere(axis: Axis, name: str, text: str) -> str:
    """Returns where a name is known that is none of an axis: as a member of another, or as a variant of a member."""
    for place, other in enumerate(FAMILIES):
        found = [
            _as_written(member, name, text)
            for member in catalogue(other).values()
            if name in (member.name, *member.variants)
        ]
        if found and other == axis:
            return f"did you mean {' or '.join(found)}?"
        if found:
            return (
                f"it is {_article(other)}, {('the first', 'the second', 'the third', 'the last')[place]} part of "
                f"{'/'.join(FAMILIES)}: {' or '.join(found)}."
            )
    return ""


def _as_written(member: type[Member], name: str, text: str) -> str:
    """Returns how a plan has a name that is a member's own, or one of its variants."""
    if name != member.name:
        return f"{member.name}:{name}"
    return text if text != name else member.example or name


def near(name: str, known: Iterable[str]) -> str:
    """Returns what may have been meant: all that is known where that is little, otherwise the nearest names."""
    names = sorted(known)
    close = [other for other in names if other.endswith(f":{name}")]  # such as allreduce:ring
    close = close or difflib.get_close_matches(name, names, n=3)
    meant = f" Did you mean {' or '.join(close)}?" if close else ""
    if len(names) <= _FEW:
        return f"known: {', '.join(names)}.{meant}"
    return (
        f"`tightwire methods` lists all {len(names)}, and those in a file of your own are known after "
        f"`tightwire --import FILE.py …`, or after an import.{meant}"
    )


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
    if kind is Seconds:
        try:
            return Seconds(value)
        except ValueError as error:
            raise PlanError(f"{text!r}: {key}={error}.") from None
    try:
        return {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
    except (ValueError, KeyError):
        raise PlanError(f"{text!r}: {key}={value!r} is not {_article(kind.__name__)}.") from None


def _article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def arguments(member: type[Member]) -> list[str]:
    """Returns what a member takes, in the order of its text form: name, type and default of each."""
    types = typing.get_type_hints(member)
    return [
        f"{f.name}: {types[f.name].__name__}"
        + (
            ""
            if f.default is dataclasses.MISSING
            else f" = {f.default!r}"
            if f.default == ""
            else f" = {f.default}"
        )
        for f in dataclasses.fields(member)
    ]


def _signature(member: type[Member]) -> str:
    return ", ".join(arguments(member)) or "no arguments"
