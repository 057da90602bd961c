"""A script's own options of attach, where its plans are raced."""

from typing import Any

import pytest

from tightwire.runtime import Race
from tightwire.study.raced import _Raced


def test_a_race_leaves_alone_what_the_script_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan file is of the real job and its network: an emulated one must neither fill it nor end early by it."""
    seen: dict[str, Any] = {}

    def attach(*given: object, **options: Any) -> Any:
        seen.update(options)

    monkeypatch.setattr("tightwire._attach.attach", attach)
    raced = _Raced(Race(budget="10min", share=0.02, contenders=6), "stale", trains_on=False)
    raced.attach(None, None, "auto", allow="lossy", keep="plan.yaml", remember=10, seed=3)
    assert seen == {"allow": "stale", "keep": None, "remember": 0, "seed": 3}
