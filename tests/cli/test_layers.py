"""`tightwire study layers`: the parts that need no lab."""

import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tightwire.cli import layers as cli
from tightwire.cli.study import app
from tightwire.errors import LabError, PlanError
from tightwire.validate import layers


def test_jobs_beside_their_predictions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "run_jobs", lambda lab, jobs, steps, **more: {job.name: 1.0 for job in jobs})
    asked = ["layers", "--part", "jobs", "--out", str(tmp_path / "layers.json"), "--json"]
    done = CliRunner().invoke(app, asked, catch_exceptions=False)
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert {"part", "name", "measured", "predicted", "asked", "unit", "holds"} <= set(rows[0])
    assert all(row["holds"] for row in rows if "slowdown" in row["name"])
    assert json.loads((tmp_path / "layers.json").read_text())["parts"] == {"jobs": rows}
    assert "Not measured yet: parallelisation" in (tmp_path / "layers.md").read_text()
    assert {row["name"] for row in rows} >= {"job a, fair: slowdown", "job urgent, intensity: slowdown"}
    with pytest.raises(PlanError, match="is no part; there are parallelisation"):
        CliRunner().invoke(app, ["layers", "--part", "magic"], catch_exceptions=False)


def test_a_study_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []

    def part(name: str, fails: bool) -> Callable[[], Iterator[layers.LayerRow]]:
        def rows() -> Iterator[layers.LayerRow]:
            measured.append(name)
            if fails:
                raise LabError("no lab here")
            yield layers.LayerRow(part=name, name="number", measured=1.0, asked=1.0, unit="s")

        return rows

    out = tmp_path / "layers.json"
    for fails in (True, False):
        monkeypatch.setattr(cli, "PARTS", {"first": part("first", False), "second": part("second", fails)})
        with pytest.raises(LabError) if fails else nullcontext():
            CliRunner().invoke(app, ["layers", "--out", str(out)], catch_exceptions=False)
    assert measured == ["first", "second", "second"]
    assert list(json.loads(out.read_text())["parts"]) == ["first", "second"]
    out.write_text("[]")
    with pytest.raises(PlanError, match="holds no results of this study"):
        CliRunner().invoke(app, ["layers", "--out", str(out)], catch_exceptions=False)
