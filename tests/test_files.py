"""Files: written plainly, read strictly, errors that name the field."""

import dataclasses
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
        ("", ["the file: ", "None"]),
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
