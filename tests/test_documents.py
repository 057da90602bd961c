"""What documents say is true: the README's code runs, its plans and commands exist, the examples work."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import tightwire
from tightwire.catalogue import parse_compression
from tightwire.cli import COMMANDS
from tightwire.plan import Plan

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_code_runs_alone(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    batches = [(torch.randn(4, 3), torch.randn(4, 2)) for _ in range(3)]
    names = {"Net": lambda: nn.Linear(3, 2), "loader": batches, "loss_fn": nn.functional.mse_loss}
    try:
        exec(code, names)
    finally:
        tightwire.shutdown()
    assert "steps         3" in capsys.readouterr().out


def test_the_readme_plans_can_be_read() -> None:
    for text in re.findall(r"^    (\w+[:/]\S+)$", README, re.MULTILINE):
        Plan.parse(text)
    (row,) = [line for line in README.splitlines() if line.startswith("| what is sent?")]
    for text in re.findall(r"`([^`+][^`]*)`", row):
        parse_compression(text)


def test_the_readme_commands_exist() -> None:
    told = set(re.findall(r"`tightwire (\w+)", README))
    assert told == set(COMMANDS)


def test_the_example_runs_alone() -> None:
    done = subprocess.run(
        [sys.executable, "examples/train.py", "--steps", "2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "workers       1" in done.stdout
