"""A plan that was chosen is held to plain all-reduce, as it was measured in the same run."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from tests.runtime.training import adam
from tightwire._attach import attach
from tightwire.cluster import Cluster
from tightwire.plan import Plan
from tightwire.runtime import auto, proof, shortlist
from tightwire.runtime.first_steps import BASELINE_STEPS, PROFILE_STEPS, WARM_UP_STEPS
from tightwire.runtime.proof import SETTLING_STEPS, TIMED_STEPS, Proof
from tightwire.transport import Transport, run_threads

STEPS = WARM_UP_STEPS + PROFILE_STEPS + BASELINE_STEPS + SETTLING_STEPS + TIMED_STEPS + 4


class OneOfAll:
    """A worker whose rank 0 says what it says."""

    def __init__(self, plan: str) -> None:
        self.plan = Plan.parse(plan)

    def ask(self, answer: str) -> list[str | None]:
        return [answer]


def judged(monkeypatch: pytest.MonkeyPatch, plan: str, step_s: float, baseline_s: float | None) -> str | None:
    ends_s = itertools.count(0.0, step_s)
    monkeypatch.setattr(proof.time, "perf_counter", lambda: next(ends_s))
    run = OneOfAll(plan)
    watched = Proof(run, baseline_s)  # type: ignore[arg-type]
    while not watched.is_over:
        said = watched.after_step(run)  # type: ignore[arg-type]
    return said


def test_steps_count_as_often_as_a_plan_needs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert judged(monkeypatch, "bsp/allreduce/none/mgwfbp", 0.9, 1.0) is None
    assert "1,100.0 ms a step; plain" in str(judged(monkeypatch, "bsp/allreduce/none/mgwfbp", 1.1, 1.0))
    assert "times as many" in str(judged(monkeypatch, "local:32", 0.9, 1.0))
    assert judged(monkeypatch, "local:32", 0.1, 1.0) is None
    assert judged(monkeypatch, "local:32", 0.9, None) is None


def test_a_plan_that_was_left_meanwhile_is_not_judged() -> None:
    run = OneOfAll("bsp/allreduce/bf16")
    watched = Proof(run, 1e-9)  # type: ignore[arg-type]
    run.plan = Plan.parse("bsp")
    assert watched.after_step(run) is None  # type: ignore[arg-type]
    assert watched.is_over


@pytest.mark.parametrize("baseline_s", [1e-6, 1e6])
def test_all_go_back_to_plain_all_reduce_where_that_is_faster(
    monkeypatch: pytest.MonkeyPatch, baseline_s: float
) -> None:
    """On a line as slow as is believed, coded means are chosen; what is measured says otherwise, or does not.

    The line is so slow that a busy machine, where a step takes a second, comes to the same choice; and the watch
    over the wire, which sees the real one, has no say.
    """
    monkeypatch.setattr(auto.WireWatch, "after_step", lambda self, run, profile: None)
    monkeypatch.setattr("tightwire.probe.probe", lambda transport, **more: Cluster.uniform(2, 5e5, 1e-4))
    monkeypatch.setattr(shortlist, "SEEDED", ("bsp/allreduce/bf16/fusion",))
    monkeypatch.setattr(auto, "Proof", lambda run, measured_s, situation: Proof(run, baseline_s, situation))

    def work(transport: Transport) -> tuple[bool, list[float]]:
        torch.manual_seed(0)
        model = nn.Linear(200, 100)
        optimizer = adam(model.parameters())
        generator = torch.Generator().manual_seed(transport.rank)
        with attach(model, optimizer, "auto", allow="lossy", transport=transport) as run:
            for _ in range(STEPS):
                optimizer.zero_grad()
                model(torch.randn(4, 200, generator=generator)).square().mean().backward()
                optimizer.step()
            why = run.report().why
        return any("gone back to" in said for said in why), model.weight[0].tolist()

    (left, weights), others = run_threads(2, work)
    assert left == (baseline_s < 1.0)
    assert (left, weights) == others
