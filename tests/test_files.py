"""Files: written plainly, read strictly, errors that name the field."""

import dataclasses
import gzip
import pathlib
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tightwire import files
from tightwire.errors import FileError


@dataclass(frozen=True, kw_only=True)
class Inner:
    __pydantic_config__: ClassVar = files.STRICT

    rate_bytes_per_s: float
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class Outer:
    __pydantic_config__: ClassVar = files.STRICT

    count: int
    links: tuple[Inner, ...] = ()
    by_name: dict[str, Inner] = field(default_factory=dict)


# What YAML can carry: printable, and no lone surrogates.
NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=20)
INNERS = st.builds(Inner, rate_bytes_per_s=st.floats(0, allow_nan=False), name=NAMES)
OUTERS = st.builds(
    Outer,
    count=st.integers(),
    links=st.lists(INNERS, max_size=3).map(tuple),
    by_name=st.dictionaries(NAMES, INNERS, max_size=3),
)


@settings(max_examples=25)
@given(OUTERS)
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, value: Outer) -> None:
    path = tmp_path_factory.getbasetemp() / "value.yaml"
    files.write(path, value)
    assert files.read(path, Outer) == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("count: 1\ncuont: 2\n", ["cuont: ", "seen 2"]),
        ("{}", ["count: "]),
        (
            "count: many\nlinks: [{rate_bytes_per_s: fast}]",
            ["count: ", "links.0.rate_bytes_per_s: ", "'fast'"],
        ),
        ("count: 1\nby_name: {a: {rate: 3}}", ["by_name.a.rate_bytes_per_s: ", "by_name.a.rate: "]),
        ("- 1\n- 2\n", ["the file: ", "[1, 2]"]),
        ("", ["it is empty"]),
        ("count: [1", ["cannot be read as a Outer file"]),
        ("count: !!python/object:os.system {}", ["cannot be read as a Outer file"]),
        ("count: " + "'" + "9" * 500 + "x'", ["..."]),
    ],
)
def test_names_every_wrong_field(tmp_path: pathlib.Path, text: str, said: list[str]) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(FileError) as caught:
        files.read(path, Outer)
    for words in [str(path), *said]:
        assert words in str(caught.value)
    assert len(str(caught.value)) < 600


def test_names_a_missing_or_binary_file(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileError, match=r"missing.yaml cannot be read"):
        files.read(tmp_path / "missing.yaml", Outer)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FileError, match=r"binary.yaml cannot be read"):
        files.read(tmp_path / "binary.yaml", Outer)


def test_writes_all_or_nothing(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "value.yaml"
    files.write(path, Outer(count=1))
    before = path.read_text()
    with pytest.raises(Exception, match="represent"):
        files.write(path, dataclasses.replace(Outer(count=1), count=object()))  # type: ignore[arg-type]
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


HOSTILE = {
    "deep": "[" * 2000,
    "deep block": "\n".join("  " * depth + "a:" for depth in range(200)),
    "alias bomb": "a0: &a0 [x, x]\n"
    + "".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(9)),
    "own alias": "count: &a [*a]",
    "digits": "count: " + "9" * 5000,
    "date": "count: 2001-99-99",
    "list as a key": "? [1, 2]\n: 3",
    "two documents": "count: 1\n---\ncount: 2",
    "true": "count: true",
    "tab": "count:\n\t1",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_yaml_is_one_sentence(tmp_path: pathlib.Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(FileError, match=r"bad\.yaml") as caught:
        files.read(path, Outer)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_other_codings_and_gzip_are_read(tmp_path: pathlib.Path) -> None:
    for name, data in {
        "marked": "count: 1".encode("utf-8-sig"),
        "powershell": "count: 1".encode("utf-16"),
        "packed": gzip.compress(b"count: 1"),
    }.items():
        (tmp_path / name).write_bytes(data)
        assert files.read(tmp_path / name, Outer) == Outer(count=1)
    (tmp_path / "cut").write_bytes(gzip.compress(b"count: 1")[:-9])
    (tmp_path / "bomb").write_bytes(gzip.compress(bytes(10**8)))
    for name, said in {
        "cut": "damaged gzip",
        "bomb": "more than 8,000,000 bytes",
        ".": "is a directory",
    }.items():
        with pytest.raises(FileError, match=said):
            files.read(tmp_path / name, Outer)


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path: pathlib.Path) -> None:
    (tmp_path / "directory").mkdir()
    for place, said in {
        "directory": "directory",
        "missing/value.yaml": "missing",
        "x" * 300: "too long",
        "zero\0byte": "cannot be written",
    }.items():
        with pytest.raises(FileError, match=said):
            files.write_text(tmp_path / place, "text")
        with pytest.raises(FileError):
            files.require_writable(tmp_path / place)
    assert list(tmp_path.iterdir()) == [tmp_path / "directory"]


def test_devices_and_links_stay_what_they_are(tmp_path: pathlib.Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "value.yaml")
    files.write_text(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "value.yaml").read_text() == "text"
    files.require_writable("/dev/null", None)
    files.write_text("/dev/null", "text")
    assert pathlib.Path("/dev/null").is_char_device()
