"""Methods of one's own in commands: `--import`, what its workers inherit, and `methods --check`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command_line import refused, tightwire
from tightwire import catalogue, extensions
from tightwire.errors import PlanError
from tightwire.plan import Plan

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_codec.py"
CLUSTER = ("--gradients", "1MB", "--compute", "9ms", "--workers", "4", "--bandwidth", "1gbit")
TWICE = """
from tests.compression.test_laws import Largest
from tightwire.catalogue import register
register(Largest)
register(Largest)
"""


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leaves nothing behind: neither a registered method, nor an import, nor what workers would inherit."""
    monkeypatch.setattr(catalogue, "_registered", [])
    monkeypatch.setenv(extensions.VARIABLE, "")
    before, path = set(sys.modules), list(sys.path)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if name.startswith(("own_codec", "my_")):
            del sys.modules[name]
    catalogue.catalogue.cache_clear()
    catalogue.parse_member.cache_clear()


def test_a_command_knows_what_it_imports_and_its_workers_do_too() -> None:
    assert "is no known compression" in refused("simulate", "bsp/allreduce/e5m2", *CLUSTER)
    done = tightwire("--import", str(EXAMPLE), "simulate", "bsp/allreduce/e5m2", *CLUSTER)
    assert done.code == 0, done.stderr
    assert "bsp/allreduce/e5m2" in done.stdout
    worker = "from tightwire.plan import Plan; print(Plan.parse('bsp/allreduce/e5m2'))"
    heard = subprocess.run(
        [sys.executable, "-c", worker],
        capture_output=True,
        text=True,
        check=True,
        env=dict(os.environ),
        cwd="/",
    )
    assert heard.stdout == "bsp/allreduce/e5m2\n"


def test_what_cannot_be_imported_is_said(tmp_path: Path) -> None:
    assert "there is no file" in refused("--import", str(tmp_path / "my_none.py"), "methods")
    (tmp_path / "my_wrong.py").write_text("1 / 0")
    assert "ZeroDivisionError" in refused("--import", str(tmp_path / "my_wrong.py"), "methods")
    (tmp_path / "json.py").write_text("")
    assert "rename the file" in refused("--import", str(tmp_path / "json.py"), "methods")
    assert "no_such_module" in refused("--import", "no_such_module", "methods")


@pytest.mark.parametrize("source", [f"{EXAMPLE}:E5M2", f"{EXAMPLE}:e5m2", str(EXAMPLE), "int8:64"])
def test_each_law_is_printed(source: str) -> None:
    done = tightwire("methods", "--check", source, "--json")
    assert done.code == 0, done.stderr
    laws = json.loads(done.stdout.splitlines()[-1])["laws"]
    assert len(laws) == 11
    assert not any(law["broken"] for law in laws)


def test_a_wrong_codec_ends_the_check_with_the_law(tmp_path: Path) -> None:
    lines = EXAMPLE.read_text().replace("return numel\n", "return 2 * numel\n").splitlines()
    text = "\n".join(line for line in lines if "check(self" not in line)
    (tmp_path / "my_wrong.py").write_text(text)
    done = tightwire("methods", "--check", str(tmp_path / "my_wrong.py"))
    assert done.code == 2
    assert "encode fills exactly the message that wire_bytes says" in done.stderr
    assert "with 7 elements of torch.float32 in a message of 14 bytes" in done.stderr
    assert "broken" in done.stdout
    assert ":E5M2" in refused("methods", "--check", f"{tmp_path / 'my_wrong.py'}:Other")


def test_a_class_may_be_registered_again_as_notebooks_do(tmp_path: Path) -> None:
    exec(TWICE, {})
    assert str(Plan.parse("bsp/allreduce/largest")) == "bsp/allreduce/largest"
    with pytest.raises(PlanError, match="known compression already"):
        catalogue.register(type("Other", (catalogue.catalogue("compression")["largest"],), {}))


def test_unknown_names_are_met_with_near_ones() -> None:
    names = list(catalogue.catalogue("compression"))
    assert catalogue.near("tpok", names).endswith("Did you mean topk or gtopk?")
    assert len(catalogue.near("tpok", names)) < 200
    assert catalogue.near("bps", ["bsp", "ssp"]) == "known: bsp, ssp. Did you mean bsp?"
