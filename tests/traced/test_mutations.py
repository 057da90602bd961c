"""Every wait of the runtime is needed: without it there is a named race, or other numbers. See `mutations`."""

from __future__ import annotations

from tests.traced.mutations import FEW, outcomes


def test_every_missing_wait_is_caught() -> None:
    found = outcomes(FEW)
    assert len(found) >= 12
    assert [o.site for o in found if not o.is_caught] == []
