"""The arithmetic of a shaped line; no clocks."""

from __future__ import annotations

from tightwire.transport.shaped import ShapedDirection


def test_messages_queue_on_a_line() -> None:
    line = ShapedDirection(1000.0)
    assert line.pass_at(500, 10.0, began_at=10.0) == 10.5
    assert line.pass_at(500, 10.1, began_at=10.1) == 11.0
    assert line.pass_at(100, 20.0, began_at=20.0) == 20.1


def test_an_incoming_line_delays_only_what_comes_too_fast() -> None:
    line = ShapedDirection(1000.0)
    assert line.pass_at(500, 10.5, began_at=10.0) == 10.5
    assert line.pass_at(500, 10.5, began_at=10.0) == 11.0
