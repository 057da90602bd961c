"""Settings for all tests: nothing is judged by the clock, and runs are repeatable."""

import os

import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported, whichever test does that first
settings.register_profile("tightwire", deadline=None, derandomize=True)
settings.load_profile("tightwire")
torch.set_num_threads(1)  # tests run side by side, and worker threads share the cores


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--many`: laws on damaged messages make a million of each."""
    parser.addoption("--many", action="store_true", help="a million damaged messages for each decoder")
