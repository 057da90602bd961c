"""Files: the one place where they are read and written, so that all errors are one sentence that names the file.

Values are YAML files, written plainly and read strictly, with errors that name the field. What other tools write is
read as text, JSON or XML. Nothing that a file holds makes reading take long, or ends in a traceback.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import io
import json
import os
import pathlib
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from tightwire.errors import FileError

if TYPE_CHECKING:
    from xml.etree import ElementTree

T = TypeVar("T")
Path = str | pathlib.Path

# What a dataclass that is read from a file sets as `__pydantic_config__`, so that an unknown field is an error.
STRICT: dict[str, Any] = {"extra": "forbid"}

# Of a file, unpacked; a trace of a long run is refused before it fills the memory.
MOST_BYTES = 2 * 10**9
# Of a YAML file: its parser takes seconds per megabyte.
MOST_YAML_BYTES = 8 * 10**6
MOST_DEPTH = 50
# Values of a YAML file once its aliases are replaced by what they stand for.
MOST_VALUES = 10**6
MOST_FAULTS = 5


def read(path: Path, kind: type[T]) -> T:
    """Reads a YAML file as a dataclass; unknown, missing and mistyped fields are refused by name.

    Args:
        path: the file.
        kind: a dataclass whose annotations say what each field must be.

    Raises:
        FileError: unreadable, not YAML, or not a `kind`.
    """
    return check(read_yaml(path, f"a {kind.__name__} file"), kind, str(path))


def read_yaml(path: Path, what: str = "YAML") -> Any:
    """Returns what a YAML file holds, JSON included.

    Args:
        path: the file.
        what: it should be, for errors.

    Raises:
        FileError: unreadable, or not YAML.
    """
    try:
        return _yaml(read_text(path, most_bytes=MOST_YAML_BYTES))
    except _YamlError as error:
        raise FileError(f"{path} cannot be read as {what}: {error}.") from None


def read_text(path: Path, *, most_bytes: int = MOST_BYTES, strict: bool = True) -> str:
    """Returns a text file, unpacked if it is gzip: UTF-8, or UTF-16 with its mark (as PowerShell's `>` writes).

    Args:
        path: the file.
        most_bytes: what it may hold once unpacked.
        strict: whether single bytes that are not UTF-8 are an error; else each becomes a mark of its own.

    Raises:
        FileError: unreadable, too large, damaged, or not text.
    """
    data = read_bytes(path, most_bytes=most_bytes)
    coding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(coding, "strict" if strict else "replace")
    except UnicodeDecodeError as error:
        raise FileError(f"{path} cannot be read as text: its byte {error.start} is not {coding}.") from None
    if "\0" in text:
        raise FileError(f"{path} cannot be read as text: it is binary.")
    return text


def read_json(path: Path) -> Any:
    """Returns what a JSON file holds; it may be packed by gzip.

    Raises:
        FileError: unreadable, or not JSON.
    """
    return parse_json(read_text(path), str(path))


def parse_json(text: str, source: str) -> Any:
    """Returns what a JSON text holds.

    Raises:
        FileError: not JSON; names `source`.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise FileError(f"{source} is no JSON: {error}.") from None
    except RecursionError:
        raise FileError(f"{source} is nested too deeply to be read as JSON.") from None
    except ValueError as error:  # such as an integer of thousands of digits
        raise FileError(f"{source} is no JSON that can be read: {_one_line(error)}.") from None


def parse_xml(text: str, source: str) -> ElementTree.Element:
    """Returns the root of an XML text.

    Raises:
        FileError: not XML; names `source`.
    """
    from xml.etree import ElementTree

    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise FileError(f"{source} is no XML: {_one_line(error)}.") from None


def check(content: Any, kind: type[T], source: str) -> T:
    """Builds a dataclass from plain values, strictly.

    Raises:
        FileError: names `source`, the first wrong fields, what was seen there and what is expected.
    """
    import pydantic

    try:
        value = pydantic.TypeAdapter(kind).validate_python(content)
    except pydantic.ValidationError as error:
        faults = [_fault(fault) for fault in error.errors(include_url=False)[:MOST_FAULTS]]
        if error.error_count() > MOST_FAULTS:
            faults.append(f"and {error.error_count() - MOST_FAULTS} more")
        raise FileError(f"{source} is not a valid {kind.__name__}: " + "; ".join(faults) + ".") from None
    if truths := [".".join(path) for path in _truths_as_numbers(content, value)]:
        raise FileError(
            f"{source} is not a valid {kind.__name__}: {truths[0]}: true and false are no numbers."
        )
    return value


def _fault(fault: Any) -> str:
    """Returns what is wrong with a field: our own sentence where a value refused itself, else pydantic's."""
    at = shortened(".".join(map(str, fault["loc"])), 80)
    if fault["type"] == "value_error":
        said = shortened(str(fault["ctx"]["error"]).rstrip("."), 300)
        return f"{at}: {said}" if at and not said.startswith(at) else said
    if fault["input"] is None and not at:
        return "it is empty"
    said = fault["msg"][0].lower() + shortened(fault["msg"][1:], 200)
    return f"{at or 'the file'}: {said} (seen {_short(fault['input'])})"


def write(path: Path, value: Any) -> None:
    """Writes a dataclass as YAML, whole or not at all.

    Raises:
        FileError: it cannot be written there.
    """
    import yaml

    write_text(
        path,
        yaml.safe_dump(_plain(dataclasses.asdict(value)), sort_keys=False, allow_unicode=True, width=110),
    )


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all; a device or a pipe, such as /dev/stdout, is written to as it is.

    Raises:
        FileError: it cannot be written there.
    """
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file, whole or not at all.

    Raises:
        FileError: it cannot be written there.
    """
    with writing(path):
        target = pathlib.Path(os.path.realpath(path))
        if target.exists() and not target.is_file():
            target.write_bytes(data)  # a device; or a directory, which the system refuses
            return
        part = _part(target)
        try:
            part.write_bytes(data)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)


def _part(target: pathlib.Path) -> pathlib.Path:
    """Returns where a file is written before it takes its name."""
    return target.with_name(f"{target.name}.{os.getpid()}.part")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the system says of a file that is written inside into one sentence.

    Raises:
        FileError: it cannot be written; names `path`.
    """
    try:
        yield
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"{path} cannot be written: {_why(error)}.") from None
    except ValueError as error:  # such as a zero byte in its name
        raise FileError(f"{str(path)!r} cannot be written: {error}.") from None


def require_writable(*paths: Path | None) -> None:
    """Refuses files that could not be written: asked before the work that fills them. None is left out.

    A file is made beside each, and removed again: of /proc, or of a disk mounted to be read, permissions alone do not
    tell that nothing can be written there.

    Raises:
        FileError: a directory, or one that nobody can write into, or whose own directory does not exist.
    """
    for path in paths:
        if path is None:
            continue
        with writing(path):
            target = pathlib.Path(os.path.realpath(path))
            if target.is_dir():
                raise FileError(f"{path} cannot be written: it is a directory; write the name of a file.")
            if not target.parent.is_dir():
                raise FileError(f"{path} cannot be written: {target.parent} is no directory; make it first.")
            if target.exists() and not os.access(target, os.W_OK):
                raise FileError(f"{path} cannot be written: permission denied.")
            if not target.exists() or target.is_file():
                _part(target).touch()
                _part(target).unlink()


def make_directory(path: Path) -> None:
    """Makes a directory that files can be written into, and those around it.

    Raises:
        FileError: it cannot be made, or nobody can write into it.
    """
    with writing(path):
        pathlib.Path(path).mkdir(parents=True, exist_ok=True)
    require_writable(pathlib.Path(path) / "any")


def read_bytes(path: Path, *, most_bytes: int = MOST_BYTES) -> bytes:
    """Returns what a file holds, unpacked if it is gzip.

    Raises:
        FileError: unreadable, damaged, or too large.
    """
    try:
        with pathlib.Path(path).open("rb") as file:
            data = file.read(most_bytes + 1)
        if data[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as unpacked:
                data = unpacked.read(most_bytes + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise FileError(f"{path} cannot be read: it is damaged gzip ({_one_line(error)}).") from None
    except OSError as error:
        raise FileError(f"{path} cannot be read: {_why(error)}.") from None
    except ValueError as error:
        raise FileError(f"{str(path)!r} cannot be read: {error}.") from None
    if len(data) > most_bytes:
        raise FileError(f"{path} cannot be read: it holds more than {most_bytes:,} bytes.")
    return data


class _YamlError(Exception):
    """A text that is no YAML, or none that can be read in a moment."""


def _yaml(text: str) -> Any:
    import yaml

    loader = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
    try:
        _require_small(yaml.parse(text, Loader=loader))
        return yaml.load(text, Loader=loader)  # both are safe loaders
    except yaml.MarkedYAMLError as error:
        where = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise _YamlError(f"{_one_line(error.problem or error.context or error)}{where}") from None
    except (yaml.YAMLError, ValueError, TypeError, ArithmeticError, RecursionError) as error:
        raise _YamlError(_one_line(error)) from None


def _require_small(events: Iterator[Any]) -> None:
    """Refuses deep nesting, and aliases that stand for more than anybody wrote; before anything is built."""
    import yaml

    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = [(None, 0)]  # anchor, values so far

    def count(values: int) -> None:
        anchor, so_far = open_nodes[-1]
        if so_far + values > MOST_VALUES:
            raise _YamlError(f"it holds more than {MOST_VALUES:,} values once its aliases are replaced")
        open_nodes[-1] = anchor, so_far + values

    for event in events:
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, 1))
            if len(open_nodes) > MOST_DEPTH:
                raise _YamlError(f"it is nested more than {MOST_DEPTH} deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, values = open_nodes.pop()
            if anchor is not None:
                sizes[anchor] = values
            count(values)
        elif isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_nodes):
                raise _YamlError(f"*{event.anchor} stands for what it is in")
            count(sizes.get(event.anchor or "", 1))
        elif isinstance(event, yaml.ScalarEvent):
            count(1)


def _truths_as_numbers(content: Any, value: Any) -> Iterator[list[str]]:
    """Yields where the content says true or false and a number was made of it."""
    if isinstance(content, bool) and isinstance(value, int | float) and not isinstance(value, bool):
        yield []
    elif isinstance(content, dict) and not isinstance(value, int | float | str):
        inside = value if isinstance(value, dict) else vars(value)
        for key, item in content.items():
            yield from ([str(key), *path] for path in _truths_as_numbers(item, inside.get(key)))
    elif isinstance(content, list) and isinstance(value, list | tuple):
        for place, (item, made) in enumerate(zip(content, value, strict=False)):
            yield from ([str(place), *path] for path in _truths_as_numbers(item, made))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _why(error: OSError) -> str:
    text = error.strerror or str(error)
    return text[0].lower() + text[1:]


def _one_line(error: object) -> str:
    return shortened(" ".join(str(error).split()), 160)


def _short(value: Any) -> str:
    try:
        return shortened(repr(value), 60)
    except ValueError:  # an integer of more digits than Python prints
        return "a number of thousands of digits"


def shortened(text: str, most: int = 400) -> str:
    """Returns a text that fits into a sentence, whatever a file holds."""
    return text if len(text) <= most else text[: most - 3] + "..."


def told(error: Exception) -> str:
    """Returns an error of Python, which holds what a file does, as a part of a sentence."""
    return shortened(repr(error))


def cache_folder() -> pathlib.Path:
    """Returns where what can be found anew is kept for this user, as the XDG base directories say."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "tightwire"


def own_version() -> str:
    """Returns the version that is installed, or that of a tree that was copied and never installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("tightwire")
    except PackageNotFoundError:
        return "not installed"
