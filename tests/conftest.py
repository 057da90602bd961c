"""Settings for all tests: nothing is judged by the clock, and runs are repeatable."""

import os
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported, whichever test does that first
_cache = tempfile.TemporaryDirectory(prefix="tightwire-tests-")  # the user's own is neither read nor written
os.environ["XDG_CACHE_HOME"] = _cache.name
settings.register_profile("tightwire", deadline=None, derandomize=True)
settings.load_profile("tightwire")
torch.set_num_threads(1)  # tests run side by side, and worker threads share the cores


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds options that ask for more than `make test` has time for."""
    parser.addoption(
        "--many",
        action="store_true",
        help="a million damaged messages for each decoder; every plan on the traced device",
    )
    parser.addoption("--ray", action="store_true", help="also what starts Ray, which takes minutes")
    parser.addoption(
        "--traced", action="store_true", help="make the traced device: tests/traced alone, in one process"
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves the traced device out unless asked: torch has one such device, and all tests of a process would see it."""
    return True if collection_path.name == "traced" and not config.getoption("--traced") else None
