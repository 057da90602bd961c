"""`tightwire cluster`: files in, a file out, what was guessed said aloud; what cannot be read is one sentence."""

import json
import pathlib
import sys

import pytest
from typer.testing import CliRunner

from tightwire.cli import cluster, main
from tightwire.cluster import Cluster

MATRIX = "\tGPU0\tGPU1\nGPU0\t X \tNV4\nGPU1\tNV4\t X \n"


def test_imports_write_a_file_and_tell_what_was_guessed(tmp_path: pathlib.Path) -> None:
    source, out = tmp_path / "topo.txt", tmp_path / "cluster.yaml"
    source.write_text(MATRIX)
    arguments = ["import", "nvidia-smi", str(source), "--out", str(out)]
    ended = CliRunner().invoke(cluster.app, arguments)
    assert ended.exit_code == 0, ended.output
    assert "2 workers; 640 Gb/s" in ended.output
    assert "Note: " in ended.output
    assert Cluster.read(out).notes
    ended = CliRunner().invoke(cluster.app, [*arguments, "--json"])
    assert json.loads(ended.output)["workers"] == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["import", "astrolabe", "x"], "is no source that is read; known: nccl-tests"),
        (["import", "nccl-tests", "missing.txt"], "missing.txt cannot be read: no such file"),
        (["import", "nccl-topology", "."], "cannot be read: is a directory"),
        (["import", "torch-traces", "binary"], "cannot be read as text"),
        (["import", "nvidia-smi", "matrix", "--out", "."], "is a directory"),
        (["new", "dgx-a100", "--out", "nowhere/cluster.yaml"], "make it first"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(
    arguments: list[str],
    says: str,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    (tmp_path / "matrix").write_text(MATRIX)
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(sys, "argv", ["tightwire", "cluster", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert says in said
    assert said.startswith("tightwire: ")
    assert said.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before
