"""The laws of the traced device, in a process of its own: torch has one such device, and all of a process see it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.timeout(600)
def test_laws_hold_on_the_traced_device() -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--traced",
        "-p",
        "no:xdist",
        str(ROOT / "tests" / "traced"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=590)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
