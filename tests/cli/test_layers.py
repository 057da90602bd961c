"""`tightwire study layers`: the parts that need no lab."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tightwire.cli.study import app
from tightwire.errors import PlanError


def test_parts_without_a_lab(tmp_path: Path) -> None:
    asked = ["layers", "--part", "jobs", "--out", str(tmp_path / "layers.json"), "--json"]
    done = CliRunner().invoke(app, asked, catch_exceptions=False)
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert {"part", "name", "measured", "predicted", "asked", "unit", "holds"} == set(rows[0])
    assert all(row["holds"] for row in rows)
    assert json.loads((tmp_path / "layers.json").read_text())["rows"] == rows
    with pytest.raises(PlanError, match="is no part; there are parallelisation"):
        CliRunner().invoke(app, ["layers", "--part", "magic"], catch_exceptions=False)
