"""`tightwire validate`: its object, what it stores, and a name that nobody has."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tightwire.cli.validate import app
from tightwire.errors import FileError
from tightwire.validate import Point, Table
from tightwire.validate.tables import TABLES


def test_what_is_printed_is_stored(tmp_path: Path) -> None:
    out = tmp_path / "validate.json"
    arguments = ["--only", "programs", "--only", "nccl-sizes", "--out", str(out)]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    tables = json.loads(done.stdout.splitlines()[-1])["tables"]
    assert {"name", "held_out", "points", "mape", "median", "worst", "spearman", "regret"} <= set(tables[0])
    stored = json.loads(out.read_text())
    assert stored["tables"] == tables
    assert len(stored["points"]["NCCL sizes"]["points"]) == 261
    page = out.with_suffix(".md").read_text()
    assert "| NCCL sizes | held out | 127 |" in page
    assert "- **closed forms**" in page
    done = CliRunner().invoke(app, [*arguments, "--points"])
    assert "met" in done.stdout
    assert "held out" in done.stdout


def test_an_unknown_table_is_refused() -> None:
    for option in ("--only", "--without"):
        with pytest.raises(FileError, match=f"{option} weather is no validation; known: programs"):
            CliRunner().invoke(app, [option, "weather"], catch_exceptions=False)


def test_a_missed_target_ends_a_strict_run_with_1(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    point = Point(name="a", group="a", measured=1.0, predicted=2.0)
    monkeypatch.setitem(
        TABLES, "programs", lambda: Table(name="far off", points=(point,), target={"mape": 0.1})
    )
    done = CliRunner().invoke(app, ["--only", "programs"])
    assert (done.exit_code, list(tmp_path.iterdir())) == (0, [])
    assert "MISSED" in done.stdout
    done = CliRunner().invoke(app, ["--only", "programs", "--strict"])
    assert done.exit_code == 1
    assert "targets are missed by far off" in done.stderr
