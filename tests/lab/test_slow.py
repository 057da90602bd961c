"""Slow workers: how they are written, when they are slow, and that they are let go."""

from __future__ import annotations

import pytest

from tightwire.errors import LabError
from tightwire.lab import Lab, OutputLine, Slow, Topology, slowdown
from tightwire.lab.slow import STRETCH_S, VARIABLE


@pytest.mark.parametrize("text", ["2:3x", "0:1.5x,random", "1:2x,emulated", "1:2x,random,emulated"])
def test_it_is_read_as_it_is_written(text: str) -> None:
    assert str(Slow.parse(text)) == text


@pytest.mark.parametrize("text", ["", "2", "2:3", "2:1x", "2:0.5x", "x:3x", "2:3x,sometimes"])
def test_what_slows_nothing_is_refused(text: str) -> None:
    with pytest.raises(LabError, match="2:3x"):
        Slow.parse(text)


def test_at_random_is_half_of_the_time_and_the_same_for_all() -> None:
    slow = Slow(2, 3.0, at_random=True)
    factors = [slow.factor_at(i * STRETCH_S) for i in range(1000)]
    assert set(factors) == {1.0, 3.0}
    assert 400 < factors.count(3.0) < 600
    assert factors == [Slow.parse("2:3x,random").factor_at(i * STRETCH_S) for i in range(1000)]
    assert {Slow(2, 3.0).factor_at(float(i)) for i in range(9)} == {3.0}


def test_emulated_compute_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert slowdown() == 1.0
    monkeypatch.setenv(VARIABLE, "1:3x,emulated")
    assert slowdown() == 3.0


def test_a_slowed_worker_ends_well_and_only_the_emulated_one_is_told() -> None:
    lines: list[OutputLine] = []
    with Lab(
        Topology(workers=3), mode="shaped", slow=[Slow.parse("1:8x"), Slow.parse("2:3x,emulated")]
    ) as lab:
        assert "rank 1 slowed (1:8x)" in lab.describe()
        result = lab.run(
            ["sh", "-c", f"echo ${VARIABLE}; seq 3000 > /dev/null; sleep 0.3"], on_line=lines.append
        )
    assert result.ok
    assert {line.rank: line.text for line in lines} == {0: "", 1: "", 2: "2:3x,emulated"}


def test_a_rank_that_is_not_there() -> None:
    with pytest.raises(LabError, match="ranks 0 to 2"):
        Lab(Topology(workers=3), slow=[Slow(3, 2.0)])
