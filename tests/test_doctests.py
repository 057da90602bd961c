"""Examples in docstrings are right: every module that has one is run."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import tightwire

ROOT = Path(tightwire.__file__).parent
WITH_EXAMPLES = [
    ".".join(["tightwire", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")
    for path in sorted(ROOT.rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


def test_there_are_examples() -> None:
    assert len(WITH_EXAMPLES) > 40


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_are_right(name: str) -> None:
    module = importlib.import_module(name)
    found = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert found.attempted, f"{name} has `>>>` that no docstring of it holds"
    assert not found.failed
