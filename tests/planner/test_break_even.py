"""What a sentence says would be chosen elsewhere is what the planner chooses when it is asked there."""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import pytest

from tightwire.cluster import Cluster
from tightwire.plan import Plan
from tightwire.planner import Allowance, break_even
from tightwire.planner.break_even import LOOKS, BreakEven, Oracle, Point, find_turn, is_another
from tightwire.planner.candidates import ALLOWANCES
from tightwire.planner.naming import name_of
from tightwire.planner.ranking import rank, usual
from tightwire.profile import Profile

# With the compute of a step, in seconds.
CASES = {
    "slow": (Cluster.uniform(8, 119.5e6, 5e-5), 0.3),
    "late": (Cluster.uniform(4, 1.2e9, 2e-3), 0.03),
    "fast": (Cluster.uniform(16, 12e9, 5e-6), 0.03),
}


def model(compute_s: float) -> Profile:
    """A model of 100 MB, as round numbers make one, in few layers."""
    return Profile.uniform(
        layers=12, numel_per_layer=2_083_333, forward_s=compute_s / 3, backward_s=2 * compute_s / 3
    )


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("allow", ALLOWANCES)
def test_every_turn_is_what_the_planner_chooses_there_and_not_yet_before(
    allow: Allowance, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[tuple[BreakEven, Callable[[float], Point]]] = []
    look = break_even._turn

    def recorded(oracle: Oracle, at: Callable[[float], Point], *more: Any) -> BreakEven:
        turns.append((look(oracle, at, *more), at))
        return turns[-1][0]

    monkeypatch.setattr(break_even, "_turn", recorded)
    cluster, compute_s = CASES[name]
    ranking = rank(model(compute_s), cluster, allow, usual(allow))
    said = " ".join(break_even.break_even(ranking))
    assert len(turns) == 5
    for turn, at in turns:
        chosen = functools.partial(lambda at, factor: rank(*at(factor), allow, usual(allow)).chosen.plan, at)
        assert not is_another(ranking.chosen.plan, chosen(turn.last))
        if turn.factor is not None:
            assert chosen(turn.factor) == turn.plan
            assert is_another(ranking.chosen.plan, turn.plan)
            assert name_of(turn.plan) in said


@pytest.mark.parametrize("allow", ALLOWANCES)
def test_who_asks_for_as_many_workers_gets_what_was_said(allow: Allowance) -> None:
    """A search among five plans said plain all-reduce where low rank is three times as fast."""
    ranking = rank(model(0.3), CASES["slow"][0], allow, usual(allow))
    said = " ".join(break_even.break_even(ranking))
    for workers, name in re.findall(
        r"with ([\d,]+) workers(?: or more|, if not before,)? (\S+?)[.;](?: |$)", said
    ):
        there = dataclasses.replace(ranking.cluster, workers=int(workers.replace(",", "")))
        assert name == name_of(rank(ranking.profile, there, allow, usual(allow)).chosen.plan)
    assert re.search(r"with [\d,]+ workers", said)


NEAR, FAR = Plan.parse("bsp"), Plan.parse("local:8")


@pytest.mark.parametrize(("turn", "farthest"), [(37.0, 1000.0), (0.2, 1e-3)])
def test_a_good_guess_needs_two_looks(turn: float, farthest: float) -> None:
    asked = []

    def choice(factor: float) -> Plan:
        return NEAR if (factor < turn) == (turn > 1) else FAR

    def ask(factor: float) -> Plan:
        asked.append(factor)
        return choice(factor)

    found = find_turn(ask, choice, farthest)
    assert found.factor == pytest.approx(turn, rel=0.021)
    assert found.last == pytest.approx(turn, rel=0.021)
    assert len(asked) == 3  # and where it begins


@pytest.mark.parametrize("guess", [lambda factor: NEAR, lambda factor: FAR], ids=["never", "at once"])
def test_a_bad_guess_never_makes_an_untrue_turn(guess: Callable[[float], Plan]) -> None:
    for turn in (1.5, 30.0, 999.0):
        found = find_turn(
            lambda factor, turn=turn: NEAR if factor < turn else FAR, guess, 1000.0, looks=LOOKS
        )
        assert found.last < turn
        assert found.factor is None or (found.factor >= turn and found.plan == FAR)


def test_where_nothing_turns_the_end_was_asked() -> None:
    found = find_turn(lambda factor: NEAR, lambda factor: NEAR, 1e-3)
    assert (found.factor, found.plan, found.last) == (None, NEAR, 1e-3)
