"""What stands in results/: made by the code of today, or said to be stale, with the reason."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


def loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("results_make", ROOT / "results" / "make.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make = loaded()
KEPT = make.records()


def test_what_is_stale_has_a_reason_that_its_reader_sees() -> None:
    """Mended by `make results`, or, for what takes too long now, by `python results/make.py --keep WHY`."""
    untold = [name for name in make.stale(KEPT) if not KEPT.get(name, {}).get("why")]
    assert not untold, f"stale and not said to be: {', '.join(untold)}; run make results"
    assert make.PAGE.read_text(encoding="utf-8") == make.page(KEPT)


def test_every_file_is_made_by_a_command() -> None:
    made = {file for result in make.RESULTS.values() for file in result.files}
    there = {path.name for path in make.FOLDER.iterdir() if path.is_file()}
    assert there - made == {"README.md", "made.json", "make.py"}


@pytest.mark.parametrize(
    ("change", "matters"),
    [('"""Says more."""\n# A comment.\nx = 1\n', False), ("x = 2\n", True), ("x = 1\ny = 3\n", True)],
)
def test_words_do_not_make_a_result_stale_and_code_does(tmp_path: Path, change: str, matters: bool) -> None:
    before, after = tmp_path / "before.py", tmp_path / "after.py"
    before.write_text('"""Says something."""\nx = 1\n', encoding="utf-8")
    after.write_text(change, encoding="utf-8")
    assert (make._meaning(before) != make._meaning(after)) == matters
