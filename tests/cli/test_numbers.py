"""Numbers that are none are refused before a command works: a limit of `nan` seconds never comes."""

import pathlib

import pytest

from tightwire.cli import application
from tightwire.errors import UnitError


@pytest.mark.parametrize(
    "line",
    [
        "tour --seconds nan",
        "study race --seconds inf",
        "bench goodput --minutes nan",
        "lab run --workers 2 --timeout nan -- true",
    ],
)
def test_a_number_that_is_none_is_refused(
    line: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnitError, match=r"--\w+ (nan|inf): write a finite number"):
        application().main(line.split(), standalone_mode=False)
    assert not list(tmp_path.iterdir())
