"""`tightwire study layers`: the parts that need no lab."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tightwire.cli.study import app
from tightwire.errors import PlanError
from tightwire.validate import layers


def test_jobs_beside_their_predictions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "run_jobs", lambda lab, jobs, steps: {job.name: 1.0 for job in jobs})
    asked = ["layers", "--part", "jobs", "--out", str(tmp_path / "layers.json"), "--json"]
    done = CliRunner().invoke(app, asked, catch_exceptions=False)
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert {"part", "name", "measured", "predicted", "asked", "unit", "holds"} == set(rows[0])
    assert all(row["holds"] for row in rows)
    assert json.loads((tmp_path / "layers.json").read_text())["rows"] == rows
    assert {row["name"] for row in rows} >= {"job a, fair: slowdown", "job urgent, intensity: slowdown"}
    with pytest.raises(PlanError, match="is no part; there are parallelisation"):
        CliRunner().invoke(app, ["layers", "--part", "magic"], catch_exceptions=False)
