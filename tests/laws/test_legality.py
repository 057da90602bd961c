"""The legality matrix: every legal triple trains, every illegal one is refused with a reason and a way out."""

from __future__ import annotations

import pytest

from tests.laws.test_syncs import all_trained
from tests.runtime.training import sgd
from tightwire.cli.methods import legality
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


def test_what_is_refused_says_why_and_every_plan_it_names_is_legal() -> None:
    refused = {case.refusal for case in CASES if case.refusal is not None}
    named = 0
    for refusal in refused:
        reason, _, nearest = refusal.partition("\nNearest legal: ")
        assert reason.endswith("."), refusal
        for text in nearest.removesuffix(".").split(", or "):
            Plan.parse(text)  # raises, were it illegal
            named += 1
    assert named >= len(refused) > 100


def test_one_cell_has_one_answer() -> None:
    assert len({(c.sync, c.architecture, c.compression) for c in CASES}) == len(CASES)
