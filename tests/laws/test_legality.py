"""The legality matrix: every legal triple trains, every illegal one is refused with a reason and a way out."""

from __future__ import annotations

import contextlib

import pytest

from tests.laws.test_syncs import all_trained
from tests.runtime.training import sgd
from tightwire.cli.methods import Case, legality
from tightwire.errors import PlanError
from tightwire.plan import Plan

CASES = list(legality())
LEGAL = [case for case in CASES if case.refusal is None]
# One compression of every kind; that each works under bsp and local is shown elsewhere.
FEW = ("none", "int8", "topk:0.01+ef", "powersgd:4+ef", "choco:topk=0.01")
WALKED = [case.plan for case in LEGAL if case.compression in FEW]


@pytest.mark.parametrize("plan", WALKED)
def test_what_is_legal_trains(plan: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    results = all_trained(plan, steps=3, optimizer=sgd)
    for parameters, report in results:
        assert report.sent_bytes == report.planned_bytes
        assert all(p.isfinite().all() for p in parameters)


def test_every_policy_and_every_architecture_is_walked() -> None:
    walked = {part for plan in WALKED for part in plan.split("/")[:2]}
    assert {case.sync for case in CASES} | {case.architecture for case in CASES} <= walked


def test_what_is_refused_says_why_and_what_would_do() -> None:
    for case in CASES:
        if case.refusal is not None:
            reason, _, nearest = case.refusal.partition("\nNearest legal: ")
            assert reason.endswith("."), case
            assert nearest, case
            assert _first_legal(nearest.rstrip(".").split(", ")), case


def _first_legal(pieces: list[str]) -> bool:
    """Whether the list begins with a plan that can be built; plans have commas too."""
    for end in range(1, len(pieces) + 1):
        with contextlib.suppress(PlanError):
            return bool(Plan.parse(", ".join(pieces[:end]).replace(", ", ",")))
    return False


def test_one_cell_has_one_answer() -> None:
    assert len({(c.sync, c.architecture, c.compression) for c in CASES}) == len(CASES)
    assert isinstance(CASES[0], Case)
