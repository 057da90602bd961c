"""`tightwire parallel`: its JSON, its files, its refusals."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tightwire.cli.parallel import app
from tightwire.cluster.presets import preset
from tightwire.errors import FileError, PlanError


def test_the_ranking_as_json_and_files(tmp_path: Path) -> None:
    preset("dgx-h100", 1).write(tmp_path / "c.yaml")
    files = [str(tmp_path / name) for name in ("mesh.py", "titan.toml", "titan.sh", "all.json", "links.html")]
    outs = [part for file in files for part in ("--out", file)]
    asked = ["llama3-8b", "--cluster", str(tmp_path / "c.yaml"), "--tokens-per-batch", "0.5M", "--top", "2"]
    done = CliRunner().invoke(app, [*asked, "--json", *outs], catch_exceptions=False)
    content = json.loads(done.stdout.splitlines()[-1])
    row = content["ranking"][0]
    assert {"layout", "step_s", "low_s", "high_s", "memory_bytes", "utilisation", "plan"} <= set(row)
    assert {
        "data",
        "shard",
        "tensor",
        "sequence",
        "context",
        "pipeline",
        "expert",
        "micro_batch",
        "recompute",
    } <= set(row["layout"])
    assert content["why"]
    assert all(Path(file).stat().st_size for file in files)
    printed = CliRunner().invoke(app, asked, catch_exceptions=False).stdout
    assert "layouts are legal" in printed
    command = (tmp_path / "titan.sh").read_text()
    assert "--module llama3 --config llama3_8b" in command
    assert "--training.seq_len 8192" in command
    one = CliRunner().invoke(
        app, [*asked, "--layout", "data=8,shard=zero3,", "--json"], catch_exceptions=False
    )
    assert json.loads(one.stdout.splitlines()[-1])["ranking"][0]["layout"]["data"] == 8


def test_bad_input_is_refused(tmp_path: Path) -> None:
    preset("dgx-h100", 1).write(tmp_path / "c.yaml")

    def refused(*more: str) -> None:
        CliRunner().invoke(app, ["llama3-8b", *more], catch_exceptions=False)

    with pytest.raises(FileError, match="the cluster is not given"):
        refused()
    with pytest.raises(FileError, match="no number of tokens"):
        refused("--cluster", str(tmp_path / "c.yaml"), "--tokens-per-batch", "lots")
    with pytest.raises(FileError, match="--memory"):
        refused("--cluster", str(tmp_path / "c.yaml"), "--memory", "8 sacks")
    with pytest.raises(FileError, match="'tensor' has no value"):
        refused("--cluster", str(tmp_path / "c.yaml"), "--layout", "tensor,data=8")
    with pytest.raises(FileError, match="gives one degree twice"):
        refused("--cluster", str(tmp_path / "c.yaml"), "--layout", "tensor=8,tensor=4")
    with pytest.raises(PlanError, match="fits"):
        refused("--cluster", str(tmp_path / "c.yaml"), "--memory", "3GB")
