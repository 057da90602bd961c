"""What is published works without the checkout: an sdist, a wheel made of it, a fresh environment, types for users."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
from importlib import metadata
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]
BUILD = "import setuptools.build_meta as backend; print(backend.build_{kind}(r'{out}'))"
CHECKED = """
import tightwire as tw

profile = tw.Profile.uniform(layers=2, numel_per_layer=10, forward_s=0.1, backward_s=0.2)
plan: tw.Plan = tw.Plan.parse("bsp")
wrong: int = tw.predict(plan, profile, tw.Cluster.uniform(2, 1e9, 1e-5))
"""


def run(*command: str | Path, cwd: Path, **extra: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | extra
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a fresh environment's folder, in which the wheel is installed; what it needs is this environment's."""
    work = tmp_path_factory.mktemp("packaging")
    tree = work / "tree"
    shutil.copytree(ROOT / "tightwire", tree / "tightwire", ignore=shutil.ignore_patterns("__pycache__"))
    for path in (ROOT / "tests").glob("*.py"):
        tree.joinpath("tests").mkdir(exist_ok=True)
        shutil.copy(path, tree / "tests")
    for path in ROOT.glob("*.*"):
        if path.is_file():
            shutil.copy(path, tree)
    shutil.copy(ROOT / "LICENSE", tree)
    out = work / "dist"
    out.mkdir()
    sdist = run(sys.executable, "-c", BUILD.format(kind="sdist", out=out), cwd=tree).split()[-1]
    with tarfile.open(out / sdist) as packed:
        packed.extractall(work, filter="data")
    unpacked = work / sdist.removesuffix(".tar.gz")
    wheel = run(sys.executable, "-c", BUILD.format(kind="wheel", out=out), cwd=unpacked).split()[-1]
    venv.create(work / "venv", with_pip=False)
    python = work / "venv" / "bin" / "python"
    install = ("-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", out / wheel)
    run(sys.executable, *install, cwd=work)
    (site,) = (work / "venv" / "lib").glob("*/site-packages")
    (site / "needed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
    return work


def test_the_wheel_runs_without_the_checkout(fresh: Path) -> None:
    python = fresh / "venv" / "bin" / "python"
    where = run(python, "-c", "import tightwire; print(tightwire.__file__)", cwd=fresh).strip()
    assert Path(where).is_relative_to(fresh / "venv")
    assert (Path(where).parent / "py.typed").exists()
    told = run(fresh / "venv" / "bin" / "tightwire", "simulate", "bsp", "--gradients", "100MB", "--compute", "0.3s",
               "--workers", "4", "--bandwidth", "1gbit", cwd=fresh)  # fmt: skip
    assert "bsp" in told
    version = run(fresh / "venv" / "bin" / "tightwire", "--version", cwd=fresh).split()[-1]
    assert (fresh / f"tightwire-{version}" / "CHANGELOG.md").exists()
    assert not (
        fresh / f"tightwire-{version}" / "tests"
    ).exists()  # which are nothing without results/ and docs/
    (licence,) = Path(where).parents[1].glob("tightwire-*.dist-info/licenses/LICENSE")
    assert licence.read_text(encoding="utf-8") == (ROOT / "LICENSE").read_text(encoding="utf-8")
    shipped = {path.relative_to(ROOT) for path in (ROOT / "tightwire").rglob("*") if path.is_file()}
    installed = Path(where).parents[1]
    missing = [p for p in shipped if "__pycache__" not in p.parts and not (installed / p).exists()]
    assert not missing


def test_types_reach_those_who_use_it(fresh: Path) -> None:
    (fresh / "used.py").write_text(CHECKED, encoding="utf-8")
    (fresh / "mypy.ini").write_text(
        "[mypy]\nstrict = true\n[mypy-torch.*]\nfollow_imports = skip\n", encoding="utf-8"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--python-executable",
            str(fresh / "venv" / "bin" / "python"),
            "used.py",
        ],
        cwd=fresh,
        env={k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "MYPYPATH")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "used.py:6: error: Incompatible types in assignment" in done.stdout, done.stdout + done.stderr
    assert "Found 1 error in 1 file" in done.stdout


def test_what_is_pinned_installs_on_the_oldest_python_that_is_promised() -> None:
    """As Debian 12 has 3.11.2: one pin that asks for more, and a newcomer's first command fails."""
    oldest = re.search(
        r'^requires-python = ">=([\d.]+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE
    )
    assert oldest is not None
    pinned = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    needs = {
        found.name: found.metadata["Requires-Python"]
        for found in metadata.distributions()
        if found.name in pinned and found.metadata["Requires-Python"] is not None
    }
    assert len(needs) > 50
    assert {name: need for name, need in needs.items() if f"{oldest[1]}.0" not in SpecifierSet(need)} == {}
