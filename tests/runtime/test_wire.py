"""The watch over the wire: what it believes, and what it leaves alone."""

import dataclasses
import json
import pathlib
import types
from typing import Any

import pytest
import torch

import tightwire as tw
from tightwire.cluster import Cluster
from tightwire.plan import Plan
from tightwire.profile import Profile
from tightwire.runtime.proof import Proof
from tightwire.runtime.spans import RoundTimes, line_s
from tightwire.runtime.wire import Change, Crowd, WireWatch
from tightwire.transport import Transport, run_threads

PROFILE = Profile.uniform(layers=4, numel_per_layer=2_500_000, forward_s=0.1, backward_s=0.2)
CLUSTER = Cluster.uniform(4, 100e6, 1e-4)
DENSE = Plan.parse("bsp/allreduce:ring/none/fusion")
WIRE_S = 0.6  # of 40 MB around a ring of 4


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What else this machine does is no part of these tests."""
    monkeypatch.setattr(Crowd, "_read", lambda self: (0, 0))


class Trainee:
    """A run whose rounds take what it is told."""

    def __init__(self) -> None:
        self.plan, self.times = DENSE, RoundTimes()
        self.transport = types.SimpleNamespace(rank=0, size=4)
        self.asked = 0

    def ask(self, answer: str) -> list[str | None]:
        self.asked += 1
        late = json.loads(answer)
        return [answer, json.dumps([3 * late[0], 0.0, 0.0, 1.0, 0.0]), None]


def steps(watch: WireWatch, run: Any, round_s: float, count: int) -> list[tuple[int, Change]]:
    found = []
    for step in range(count):
        run.times.note([(0.0, round_s)])
        if (change := watch.after_step(run, PROFILE)) is not None:
            found.append((step, change))
    return found


def test_a_line_that_slows_down_and_recovers_is_believed_within_twenty_steps() -> None:
    watch, run = WireWatch(CLUSTER), Trainee()
    assert steps(watch, run, WIRE_S + 0.05, 40) == []
    ((at, change),) = steps(watch, run, 10 * WIRE_S + 0.05, 20)
    assert at < 20
    assert change.scale == pytest.approx(0.1, rel=0.05)
    assert "0.1 × what it did" in str(change)
    ((at, change),) = steps(watch, run, WIRE_S + 0.05, 20)
    assert change.scale == pytest.approx(1.0, rel=0.1)
    assert steps(watch, run, WIRE_S + 0.05, 100) == []


def test_bursts_and_noise_change_nothing_and_looks_are_few() -> None:
    watch, run = WireWatch(CLUSTER), Trainee()
    steps(watch, run, WIRE_S, 20)
    for _ in range(10):
        assert steps(watch, run, 5 * WIRE_S, 3) == []
        assert steps(watch, run, 1.25 * WIRE_S, 12) == []
    assert run.asked < 40


def test_a_plan_that_sends_next_to_nothing_tells_nothing() -> None:
    watch, run = WireWatch(CLUSTER), Trainee()
    run.plan = Plan.parse("bsp/allreduce/topk:0.001+ef/fusion")
    steps(watch, run, 0.05, 20)
    assert steps(watch, run, 0.09, 40) == []
    assert steps(watch, run, 0.02, 40) == []


def test_a_first_guess_that_was_too_low_is_corrected() -> None:
    watch, run = WireWatch(CLUSTER), Trainee()
    steps(watch, run, WIRE_S, 20)
    steps(watch, run, 10 * WIRE_S, 20)
    ((_, first),) = steps(watch, run, 3 * WIRE_S, 20)
    assert first.scale < 0.5
    ((_, second),) = steps(watch, run, WIRE_S, 20)
    assert second.scale == pytest.approx(1.0, rel=0.1)


def test_busy_processors_are_no_slower_wire() -> None:
    """Codecs and messages take more than twice as long, and bytes as long as ever."""
    watch, run = WireWatch(CLUSTER), Trainee()
    steps(watch, run, WIRE_S + 0.65, 20)
    assert steps(watch, run, WIRE_S + 1.5, 40) == []
    assert len(steps(watch, run, 5 * WIRE_S + 1.5, 20)) == 1


def test_rounds_that_slow_down_as_compute_does_tell_of_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    watch, run = WireWatch(CLUSTER), Trainee()

    def seen(crowd: float, round_s: float, count: int) -> int:
        monkeypatch.setattr(Crowd, "told", lambda self: (crowd, 0.0))
        found = 0
        for _ in range(count):
            run.times.note([(0.0, round_s)])
            found += watch.after_step(run, PROFILE) is not None
        return found

    assert seen(2.0, WIRE_S, 20) == 0
    assert seen(4.0, 2 * WIRE_S, 40) == 0
    assert seen(2.0, 2 * WIRE_S, 20) == 1


def test_what_moves_a_round_by_less_than_threads_wait_for_a_core_tells_nothing_of_the_wire(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rounds of less than a millisecond, as on a busy machine; and a wire that does carry less is seen all the same."""

    def changes(wire_s: float, round_s: float, waited_s: float, before_s: float) -> bool:
        """Returns whether a change is believed once rounds are of another length, where a step waits for so long."""
        monkeypatch.setattr(WireWatch, "_expected", lambda *told: (wire_s, 0.0))
        monkeypatch.setattr(Crowd, "told", lambda self: (1.0, waited_s * watch._untold))
        watch, run = WireWatch(CLUSTER), Trainee()
        steps(watch, run, before_s, 20)
        return bool(steps(watch, run, round_s, 20))

    for wire_s in (0.0003, 0.0008):
        assert not changes(wire_s, 1.9e-3, 0.0, before_s=wire_s)
        assert not changes(wire_s, 9e-3, 12e-3, before_s=wire_s)
        assert changes(wire_s, 9e-3, 1e-3, before_s=wire_s)
        assert changes(wire_s, 30e-3, 1.0, before_s=wire_s)
    assert not changes(0.0018, 0.0003, 0.0, before_s=0.0018)  # faster than was probed, which means as little
    assert changes(0.018, 0.003, 0.0, before_s=0.018)
    assert not changes(0.018, 0.003, 0.1, before_s=0.018)


def test_what_the_system_tells_of_waiting_for_a_core(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    told = tmp_path / "schedstat"
    told.write_text("100 50 7")
    crowd = Crowd(told)
    told.write_text("200 350 9")
    assert crowd.told() == (4.0, pytest.approx(300e-9))
    assert crowd.told() == (1.0, 0.0)  # nothing since
    assert Crowd(tmp_path / "absent").told() == (1.0, 0.0)


def test_who_goes_back_and_forth_is_believed_less() -> None:
    watch, run = WireWatch(CLUSTER), Trainee()
    steps(watch, run, WIRE_S, 20)
    first = [steps(watch, run, factor * WIRE_S, 40) for factor in (10, 1, 10, 1)]
    assert [len(found) for found in first] == [1, 1, 1, 1]
    (early, _), *_, (late, _) = [found[0] for found in first]
    assert late > early


def test_a_line_that_recovers_is_believed_to_be_what_was_probed_and_not_more() -> None:
    """Beside the slow line processors were busy, and then no more."""
    watch, run = WireWatch(CLUSTER), Trainee()
    steps(watch, run, WIRE_S, 20)
    steps(watch, run, 10 * WIRE_S, 12)
    assert steps(watch, run, 20 * WIRE_S, 8) == []
    ((_, change),) = steps(watch, run, 2 * WIRE_S, 20)
    assert 0.4 < change.scale <= 1.0


def test_what_was_predicted_beside_the_wire_makes_no_line_faster_than_its_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(WireWatch, "_expected", lambda *told: (WIRE_S, 5.0))
    watch, run = WireWatch(CLUSTER), Trainee()
    steps(watch, run, WIRE_S, 20)
    slow = steps(watch, run, 10 * WIRE_S, 12)
    assert [change.scale for _, change in slow] == pytest.approx([0.1], rel=0.05)
    fast = steps(watch, run, 5 * WIRE_S, 20)
    assert [change.scale for _, change in fast] == pytest.approx([0.2], rel=0.05)


def test_lines_are_kept_busy_by_any_piece_and_few_rounds_are_kept() -> None:
    times = RoundTimes()
    for i in range(40):
        times.note([(0.0, 1.0), (0.5, 1.5 + i), (100.0, 101.0)])
    assert line_s([]) == 0.0
    assert times.count == 40
    assert times.since(38) == [1.5 + 38 + 1, 1.5 + 39 + 1]
    assert times.since(40) == []


@dataclasses.dataclass
class Line:
    """Of a pretended wire: how many times as slow as it was."""

    slow: float = 1.0


def test_auto_plans_again_alike_on_all_ranks_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line()
    note = RoundTimes.note

    def pretend(times: RoundTimes, spans_s: Any) -> None:
        note(times, [(0.0, 0.2 * line.slow)])

    monkeypatch.setattr(RoundTimes, "note", pretend)
    monkeypatch.setattr("tightwire.probe.probe", lambda transport, **more: Cluster.uniform(2, 1e6, 1e-4))
    monkeypatch.setattr(Proof, "after_step", lambda proof, run: None)  # no step is as slow as that wire

    def train(transport: Transport) -> tuple[str, tuple[str, ...]]:
        torch.manual_seed(0)
        model = torch.nn.Linear(100, 100)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        with tw.attach(model, optimizer, "auto", transport=transport) as run:
            for step in range(50):
                if step == 25:
                    line.slow = 10.0
                optimizer.zero_grad()
                model(torch.randn(4, 100)).square().mean().backward()
                optimizer.step()
            return str(run.plan), run.report().why

    found = run_threads(2, train, deadline_s=120)
    assert found[0] == found[1]
    assert any("rounds of this run keep the wire" in why for why in found[0][1]), found[0][1]
