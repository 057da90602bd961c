"""Values as YAML files: written plainly, read strictly, with errors that name the field."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any, TypeVar

from tightwire.errors import FileError

T = TypeVar("T")

# What a dataclass that is read from a file sets as `__pydantic_config__`, so that an unknown field is an error.
STRICT: dict[str, Any] = {"extra": "forbid"}


def read(path: str | pathlib.Path, kind: type[T]) -> T:
    """Reads a YAML file as a dataclass; unknown, missing and mistyped fields are refused by name.

    Args:
        path: the file.
        kind: a dataclass whose annotations say what each field must be.

    Raises:
        FileError: unreadable, not YAML, or not a `kind`.
    """
    import yaml

    try:
        content = yaml.safe_load(pathlib.Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise FileError(f"{path} cannot be read as a {kind.__name__} file: {error}") from None
    return check(content, kind, str(path))


def check(content: Any, kind: type[T], source: str) -> T:
    """Builds a dataclass from plain values, strictly.

    Raises:
        FileError: names `source`, every wrong field, what was seen there and what is expected.
    """
    import pydantic

    try:
        return pydantic.TypeAdapter(kind).validate_python(content)
    except pydantic.ValidationError as error:
        faults = [
            f"{'.'.join(map(str, fault['loc'])) or 'the file'}: {fault['msg'][0].lower() + fault['msg'][1:]}"
            f" (seen {_short(fault['input'])})"
            for fault in error.errors()
        ]
        raise FileError(f"{source} is not a valid {kind.__name__}: " + "; ".join(faults) + ".") from None


def write(path: str | pathlib.Path, value: Any) -> None:
    """Writes a dataclass as YAML, whole or not at all."""
    import yaml

    target = pathlib.Path(path)
    text = yaml.safe_dump(_plain(dataclasses.asdict(value)), sort_keys=False, allow_unicode=True, width=110)
    part = target.with_name(target.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(target)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
