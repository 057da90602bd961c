"""A trainer's library that is not installed: the error names the extra."""

from __future__ import annotations

import importlib
import sys

import pytest

NEEDED = {"lightning": "lightning", "trainer": "transformers", "ray": "ray"}


@pytest.mark.parametrize(("module", "extra"), NEEDED.items())
def test_what_is_not_installed_says_which_extra(
    module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == extra]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, extra, None)
    monkeypatch.delitem(sys.modules, f"tightwire.integrations.{module}", raising=False)
    with pytest.raises(ModuleNotFoundError, match=rf"pip install 'tightwire\[{extra}\]'"):
        importlib.import_module(f"tightwire.integrations.{module}")
