"""Races: decided alike everywhere, restored to the bit, bounded, on the record; and the watch that follows."""

from __future__ import annotations

import dataclasses
import itertools
import math
import pathlib
import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.runtime.training import Job, Net, adam, job, loss_of, same, values
from tightwire.cluster import Cluster
from tightwire.errors import AttachError, FileError, PlanError
from tightwire.plan import Plan, PlanFile
from tightwire.planner import STOCK
from tightwire.profile import CodecCost
from tightwire.runtime import auto, choice, first_steps, lookout, shortlist
from tightwire.runtime.auto import Pilot
from tightwire.runtime.choice import PlanSearch
from tightwire.runtime.first_steps import PROFILE_STEPS, WARM_UP_STEPS
from tightwire.runtime.learnt import Learnt, facts_of
from tightwire.runtime.lookout import Lookout, LossLevel
from tightwire.runtime.proof import Proof
from tightwire.runtime.race import (
    LEAST_STEPS,
    Contender,
    Heats,
    Race,
    better_untried,
    clearly_behind,
    judged,
    order,
    plan_heats,
    tells_little,
)
from tightwire.runtime.racing import Racing
from tightwire.runtime.step import Optimizers
from tightwire.transport import Single, Transport, run_threads

FIELD = ("bsp/allreduce/int8+ef/sequential", "local:4/allreduce/none/sequential", "bsp")


def contender(plan: str, step_s: float = 0.001, **facts: float) -> Contender:
    rounds = Plan.parse(plan).sync.steps_per_round
    return dataclasses.replace(Contender(plan=plan, predicted_step_s=step_s, steps_per_round=rounds), **facts)


def step(j: Job, number: int, *, tells: bool = True, factor: float = 1.0) -> None:
    j.optimizer.zero_grad()
    loss = loss_of(j.model, j.rank, number) * factor
    loss.backward()
    if tells:
        j.run.report_loss(loss)
    j.optimizer.step()


def state(j: Job) -> list[Tensor]:
    kept = [t for s in j.optimizer.state.values() for t in s.values() if isinstance(t, Tensor)]
    return [t.clone() for t in (*values(j.model), *kept)]


@pytest.mark.parametrize("text", ["race:", "race", "race:40s", "race:5000 steps"])
def test_a_race_is_asked_for_by_text(text: str) -> None:
    assert Race.parse(text) is not None
    assert Race.parse("bsp") is None


def test_a_budget_is_a_time_or_steps() -> None:
    assert Race(budget="2h").budget_s(1.0) == 7200
    assert Race(budget="5000 steps").budget_s(0.5) == 2500
    for budget in ("0s", "soon", "-3 steps", "0 steps"):
        with pytest.raises(PlanError, match="race with a budget"):
            Race(budget=budget)
    with pytest.raises(PlanError, match="share"):
        Race(share=0)


def test_what_may_be_lost_bounds_the_field() -> None:
    field = [contender(f"local:{n}", 0.1) for n in (2, 4, 8, 16)]
    for cost_s in (0.1, 1.0, 5.0, 100.0):
        heats = plan_heats(field, cost_s)
        assert heats.cost_s <= cost_s + 1e-9
    assert plan_heats(field, 100.0).fields == (4, 2)
    assert plan_heats(field[:1], 100.0).fields == (1,)
    least = LEAST_STEPS
    two = [contender("bsp", 0.1), contender("bsp/allreduce/bf16", 0.1)]
    assert plan_heats(two, 0.2 * least).fields == (2, 2)  # a clear loser runs half as long
    assert plan_heats(two, 0.15 * least).fields == (2,)
    assert plan_heats(two, 0.05 * least).fields == (
        1,
    )  # they could not be told apart: nothing is spent on that
    long = [contender("local:64", 0.1), *two]
    assert plan_heats(long, 8.0) == Heats(entered=("local:64", "bsp"), trial_s=(8.0,), fields=(2,))
    assert plan_heats(long, 6.3).entered == ("bsp", "bsp/allreduce/bf16")


def test_what_was_measured_outweighs_what_was_expected_once_it_is_precise() -> None:
    fast, slow = contender("bsp", 0.1), contender("local:8", 0.1, expected=1.3)
    noise = [0.3 * (-1) ** i for i in range(8)]
    told = [
        judged(fast, [3.0] * 8, 0.1, 3.0),
        judged(slow, [3 - 0.01 * i for i in range(8)], 0.1, 3.0),
    ]
    assert order(told)[0].plan == "local:8"
    noisy = [judged(c, [3 + e for e in noise], 0.1, 3.0) for c in (slow, fast)]
    assert order([dataclasses.replace(c, loss_per_s=0.1) for c in noisy])[0].plan == "bsp"


def test_of_two_that_noise_alone_tells_apart_the_mildest_leads() -> None:
    mild, wild = contender("bsp", 0.1, expected=1.1), contender("local:8", 0.1, expected=1.4)
    noise = [0.05 * (-1) ** i for i in range(8)]
    told = [judged(mild, [3 - 0.0100 * i + e for i, e in enumerate(noise)], 0.1, 3.0)]
    told.append(judged(wild, [3 - 0.0130 * i + e for i, e in enumerate(noise)], 0.1, 3.0))
    assert [c.plan for c in order(told)] == ["bsp", "local:8"]
    assert not clearly_behind(told)


def test_a_short_trial_tells_little_of_what_follows_and_a_rise_of_the_loss_enough() -> None:
    fast, slow = contender("bsp", 0.1), contender("local:8", 0.1)

    def heat(steps: int, slope: float) -> list[Contender]:
        lines = ([3 - a * i for i in range(steps)] for a in (0.02, slope))
        return [judged(c, line, 0.1, 3.0) for c, line in zip((fast, slow), lines, strict=True)]

    assert not clearly_behind(heat(6, 0.01))
    assert tells_little(heat(6, 0.01))
    assert clearly_behind(heat(200, 0.01)) == {"local:8"}
    assert not tells_little(heat(200, 0.01))
    assert clearly_behind(heat(6, -0.01)) == {"local:8"}


def test_a_plan_whose_rounds_are_too_long_for_a_trial_wins_by_what_others_showed() -> None:
    ran = judged(contender("bsp", 0.2), [3 - 0.01 * i for i in range(8)], 0.1, 3.0)
    # Steps take half of what was predicted: the other's will, too.
    level, better = contender("local:64", 0.2), contender("local:32", 0.1)
    assert better_untried([ran], [level]) is None
    assert better_untried([ran], [level, better]) == better
    assert better_untried([ran], [dataclasses.replace(better, expected=2.0)]) is None


def test_four_losses_that_happen_to_lie_on_lines_tell_less_than_forty() -> None:
    def heat(steps: int) -> set[str]:
        noise = [0.03 * (-1) ** i for i in range(steps)]
        slopes = {"bsp": 0.02, "local:8": 0.04}
        return clearly_behind(
            [
                judged(contender(p, 0.1), [3 - a * i + e for i, e in enumerate(noise)], 0.1, 3.0)
                for p, a in slopes.items()
            ]
        )

    assert heat(4) == set()
    assert heat(40) == {"bsp"}


def test_a_heat_that_shows_nothing_leaves_it_to_what_was_expected() -> None:
    fast, slow = contender("local:8", 0.1, expected=1.2), contender("bsp", 1.0)
    up = [3 + 0.2 * (-1) ** i for i in range(8)]
    told = [judged(fast, up, 0.1, 3.0), judged(slow, [3.0, 2.95, 3.1, 2.99], 1.0, 3.0)]
    assert order(told)[0].plan == "local:8"


def test_one_whose_loss_alone_rises_never_leads_however_fast_its_steps() -> None:
    slow, fast = contender("bsp", 0.03), contender("local:4", 0.001)
    falls = judged(slow, [3.0 - 0.1 * (n % 4) for n in range(80)], 0.03, 3.0)
    rises = judged(fast, [3.0 + 0.1 * (n % 4) for n in range(32)], 0.003, 3.0)
    assert order([rises, falls])[0].plan == "bsp"
    assert clearly_behind([rises, falls]) == {"local:4"}


def test_one_that_diverged_never_leads() -> None:
    bad = judged(contender("bsp"), [1.0, math.nan], 0.1, 1.0)
    good = judged(contender("local:8"), [1.0, 1.1], 0.1, 1.0)
    assert [c.plan for c in order([bad, good])] == ["local:8", "bsp"]


@pytest.mark.parametrize("plan", FIELD)
def test_a_snapshot_is_gone_back_to_to_the_bit(plan: str) -> None:
    def worker(transport: Transport) -> None:
        with job(transport, plan, optimizer=adam) as j:
            for number in range(4):
                step(j, number)
            snapshot, before = j.run.snapshot(remembering=True), state(j)
            j.optimizer.param_groups[0]["lr"] = 0.02
            for number in range(4, 8):
                step(j, number)
            after = values(j.model)
            j.run.go_back(snapshot, Plan.parse(plan), remembering=True)
            assert same(state(j), before)
            assert j.optimizer.param_groups[0]["lr"] == 0.02  # the user's own
            for number in range(4, 8):
                step(j, number)
            assert same(values(j.model), after)
            j.run.go_back(snapshot, Plan.parse("bsp"))
            step(j, 8)

    run_threads(2, worker, deadline_s=20)


def race(transport: Transport, judge: bool) -> tuple[str, list[Contender], list[Tensor]]:
    with job(transport, FIELD[0], optimizer=adam) as j:
        told = Race(budget="1s", judge=(lambda: float(loss_of(j.model, 0, 999))) if judge else None)
        entered = [contender(plan) for plan in FIELD]
        racing = Racing(told, entered, plan_heats(entered, 0.3), 1e9)
        racing.begin(j.run)
        number = 0
        while racing.winner is None:
            step(j, number)
            racing.after_step(j.run, float(loss_of(j.model, j.rank, number).detach()))
            number += 1
        assert racing.winner.plan == str(j.run.plan)
        step(j, number)
        return racing.winner.plan, list(racing.contenders.values()), values(j.model)


@pytest.mark.parametrize("judge", [False, True])
def test_all_ranks_see_the_same_race(judge: bool) -> None:
    first, second = run_threads(2, lambda t: race(t, judge), deadline_s=20)
    assert first[:2] == second[:2]
    winner, record, _ = first
    assert all(c.heats and c.steps and c.loss_per_s is not None for c in record)
    assert sum(not c.note for c in record) == 1
    if not winner.startswith("local"):
        assert same(first[2], second[2])


def test_one_that_is_clearly_behind_is_out_at_once_and_a_leader_goes_on_where_it_is() -> None:
    def worker(transport: Transport) -> list[Contender]:
        with job(transport, FIELD[0], optimizer=adam) as j:
            entered = [contender(plan) for plan in FIELD[:2]]
            racing = Racing(
                Race(budget="1s"), entered, Heats(entered=FIELD[:2], trial_s=(0.08,), fields=(2,)), 1e9
            )
            racing.begin(j.run)
            number = 0
            while racing.winner is None:
                step(j, number)
                rise = 0.1 if str(j.run.plan) == FIELD[1] else -0.1
                racing.after_step(j.run, 3.0 + rise * (number % 4))
                number += 1
            return list(racing.contenders.values())

    first, _ = run_threads(2, worker, deadline_s=20)
    assert (first[0].note, first[1].note) == ("", "behind in heat 1")
    assert first[0].steps == 80
    assert first[1].steps == first[1].least_steps


@pytest.mark.parametrize("plan", FIELD[:2])
def test_workers_that_are_finished_follow_those_that_go_back(plan: str) -> None:
    def worker(transport: Transport) -> list[Tensor]:
        with job(transport, plan, optimizer=adam) as j:
            for number in range(4):
                step(j, number)
            if transport.rank == 0:
                snapshot = j.run.snapshot(remembering=True)
                for number in range(4, 8):
                    step(j, number)
                j.run.go_back(snapshot, Plan.parse("bsp"))
                step(j, 8)
        return values(j.model)

    first, second = run_threads(2, worker, deadline_s=20)
    assert same(first, second)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    def cost(text: str) -> CodecCost:
        return CodecCost(compression=text, encode_s_per_element=1e-9, decode_s_per_element=1e-9)

    monkeypatch.setattr(shortlist, "known_costs", lambda texts, **options: (tuple(map(cost, texts)), 1e-9))
    monkeypatch.setattr(first_steps, "CHEAP_S", 0.0)  # a slow wire
    monkeypatch.setattr(first_steps, "PART_S", 0.0)
    monkeypatch.setattr(choice, "QUICK_PROBE_S", 0.2)
    monkeypatch.setattr(
        "tightwire.runtime.learnt.SAME_WIRE", math.inf
    )  # beside other tests, threads are no wire


STEPS = 120


def test_a_race_is_run_by_attach_and_kept(quick: None, tmp_path: pathlib.Path) -> None:
    kept = tmp_path / "plan.yaml"

    def worker(transport: Transport, steps: int) -> tuple[str, int, bool]:
        with job(transport, "race:60s", optimizer=adam, allow="stale", keep=kept) as j:
            # Nothing travels while the first steps are watched.
            assert steps == 1 or str(j.run.plan) == first_steps.PARTING
            for number in range(steps):
                step(j, number)
            return j.run.report().plan, len(j.run.report().contenders), j.run.is_settled

    first, second = run_threads(2, lambda t: worker(t, STEPS), deadline_s=30)
    assert first == second
    assert kept.exists() == first[2]
    if first[2]:  # chosen within these steps
        again, _ = run_threads(2, lambda t: worker(t, 1), deadline_s=30)
        assert again[0] == first[0]


def test_all_plans_are_looked_at_once_training_went_on_for_long(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "SECOND_LOOK_S", 0.0)
    for module in (auto, choice):
        monkeypatch.setattr(module, "AHEAD", 20)
    monkeypatch.setattr("tightwire.probe.probe", lambda transport, **more: Cluster.uniform(2, 1e6, 1e-4))
    monkeypatch.setattr(Proof, "after_step", lambda proof, run: None)  # no step is as slow as that wire

    def worker(transport: Transport) -> tuple[str, list[str]]:
        with job(transport, "auto", optimizer=adam, allow="stale") as j:
            for number in range(90):
                step(j, number)
            looks = [why for why in j.run.report().why if "all plans were looked at, for a long run" in why]
            return str(j.run.plan), looks

    first, second = run_threads(2, worker, deadline_s=60)
    assert first == second
    assert len(first[1]) == 1, first  # once


def test_a_plan_that_was_kept_on_another_device_is_chosen_anew(
    quick: None, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept, at = tmp_path / "plan.yaml", {"card": "A100"}
    monkeypatch.setattr("tightwire.devices.cpu.Cpu.facts", lambda self, device: at)

    def learnt() -> Learnt:
        return Learnt(kept, facts_of({}, "Adam", torch.device("cpu"), 2, 0, "auto, lossy"))

    learnt().keep(
        PlanFile(plan="bsp/allreduce/int8+ef", measured={"cluster": {"bandwidth_bytes_per_s": 1e7}})
    )
    assert all(run_threads(2, lambda transport: learnt().recall(transport), deadline_s=30))
    at["card"] = "H100"
    assert not any(run_threads(2, lambda transport: learnt().recall(transport), deadline_s=30))
    assert any("was made for another device" in record.getMessage() for record in caplog.records)


NO_PLANS = {
    "no plan": b"lr: 0.1\n",
    "no text": b"\xff\x00\x01",
    "a plan of the user's own": b"plan: bsp\n",
    "made for nothing": b"plan: bsp\nmeasured: {made_for: null, cluster: {bandwidth_bytes_per_s: 1.0e+7}}\n",
    "no words": b"plan: bsp\nmeasured: {made_for: {model: [1]}, cluster: {bandwidth_bytes_per_s: 1.0e+7}}\n",
    "no cluster": b"plan: bsp\nmeasured: {made_for: {}, cluster: 3}\n",
    "no rate": b"plan: bsp\nmeasured: {made_for: {}, cluster: {bandwidth_bytes_per_s: 0}}\n",
    "a date": b"plan: bsp\nmeasured: {made_for: {}, cluster: {bandwidth_bytes_per_s: 1.0e+7}, at: 2026-01-01}\n",
}


@pytest.mark.parametrize("content", NO_PLANS.values(), ids=NO_PLANS)
def test_what_was_not_kept_is_not_overwritten(quick: None, tmp_path: pathlib.Path, content: bytes) -> None:
    """Refused on every rank, before anything is measured."""
    file = tmp_path / "settings.yaml"
    file.write_bytes(content)

    def worker(transport: Transport) -> None:
        with (
            pytest.raises(FileError, match=r"would overwrite .* Name another file"),
            job(transport, "auto", keep=file),
        ):
            pass

    run_threads(2, worker, deadline_s=20)
    assert file.read_bytes() == content


def test_an_empty_file_is_filled(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "made by mktemp"
    file.touch()
    assert run_threads(2, lambda transport: Learnt(file, {}).recall(transport), deadline_s=20) == [None, None]


def test_a_plan_that_was_kept_with_another_optimizer_is_chosen_anew(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    def learnt(optimizer: str) -> Learnt:
        facts = facts_of({}, optimizer, torch.device("cpu"), 2, 0, "auto, lossy")
        return Learnt(tmp_path / "plan.yaml", facts)

    learnt("Adam").keep(PlanFile(plan="bsp", measured={"cluster": {"bandwidth_bytes_per_s": 1e7}}))
    assert not any(run_threads(2, lambda transport: learnt("SGD").recall(transport), deadline_s=30))
    assert any("was made for another optimizer" in record.getMessage() for record in caplog.records)


def test_a_place_where_nothing_can_be_kept_is_told_at_once(
    quick: None, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Not after a race of an hour."""

    def worker(transport: Transport) -> None:
        with job(transport, "auto", keep=tmp_path / "nowhere" / "plan.yaml"):
            pass

    run_threads(2, worker, deadline_s=30)
    told = [record.getMessage() for record in caplog.records]
    assert sum("is not going to be kept" in message and "nowhere" in message for message in told) == 1


def test_what_is_left_to_each_rank_is_no_part_of_what_is_planned_for(quick: None) -> None:
    def worker(transport: Transport) -> set[str]:
        with job(transport, "auto", optimizer=adam, allow="lossy", leave=["last.*"]) as j:
            for number in range(WARM_UP_STEPS + PROFILE_STEPS + 1):
                step(j, number)
            found: Any = j.run._pilot
            assert all(p is not j.model.last.weight for p in found._noise._parameters)
            return {parameter.name for parameter in found._profile.parameters}

    for names in run_threads(2, worker, deadline_s=30):
        assert names == {"first.weight", "first.bias", "scale", "nothing"}


def test_a_race_needs_the_loss(quick: None) -> None:
    def worker(transport: Transport) -> None:
        with job(transport, "race:60s", allow="lossy") as j:
            for number in range(WARM_UP_STEPS + PROFILE_STEPS - 1):
                step(j, number, tells=False)
            with pytest.raises(AttachError, match="report_loss"):
                step(j, 99, tells=False)

    run_threads(2, worker, deadline_s=30)


def test_a_loss_that_rises_sends_training_back_to_a_milder_plan() -> None:
    def worker(transport: Transport) -> tuple[str, list[str]]:
        with job(transport, "bsp/allreduce/topk:0.1+ef", optimizer=adam) as j:
            watch = Lookout(["bsp/allreduce/int8+ef", "local:8"], j.run.plan)
            assert watch.milder == ["bsp/allreduce/int8+ef", STOCK]
            watch.begin(j.run, LossLevel(1.0, 0.0))
            before = state(j)
            for number in range(watch._planned * 5):
                step(j, number)
                watch.after_step(j.run, 2.0 + 0.01 * (number % 2))
                if watch.remarks:
                    assert same(state(j), before)
                    break
            return str(j.run.plan), watch.remarks

    first, second = run_threads(2, worker, deadline_s=20)
    assert first == second
    assert first[0] == str(Plan.parse("bsp/allreduce/int8+ef"))
    assert "went back" in first[1][0]


class Watched:
    """A run of one worker, as far as a lookout sees it."""

    def __init__(self) -> None:
        self.plan = Plan.parse("bsp/allreduce/topk:0.1+ef")
        self.snapshots = 0
        self.transport = Single()

    def ask(self, answer: str) -> list[str | None]:
        return [answer]

    def snapshot(self, *, remembering: bool = False) -> int:
        self.snapshots += 1
        return self.snapshots

    def go_back(self, snapshot: int, plan: Plan) -> None:
        self.plan = plan


@pytest.mark.parametrize("every", [1, 7, 50])
def test_a_loss_that_is_told_now_and_then_is_watched_too(every: int) -> None:
    """One that only rises by chance sends nobody back."""
    run: Any = Watched()
    watch = Lookout(["bsp/allreduce/int8+ef"], run.plan)
    watch.begin(run)
    noisy = itertools.cycle([1.9, 2.3, 2.6, 2.5, 2.1])
    for number in range(3000):
        watch.after_step(run, next(noisy) if number % every == every - 1 else None)
    assert not watch.remarks
    for number in range(12000):
        watch.after_step(run, 9.0 + number % 2 if number % every == every - 1 else None)
    assert watch.remarks


def test_what_a_plan_may_spoil_is_a_share_of_what_was_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookout, "SHORT_S", 0.0)  # steps that take long
    run: Any = Watched()
    watch = Lookout(["bsp/allreduce/int8+ef"], run.plan)
    watch.begin(run)
    windows = []
    for number in range(1000):
        if watch._steps == 0:
            windows.append((number, watch._planned))
        watch.after_step(run, 3.0 - 0.001 * number)
    assert all(size <= max(20, 0.25 * done) for done, size in windows)
    assert run.snapshots == len(windows)
    while not watch.remarks:
        watch.after_step(run, math.nan)
    assert str(run.plan) == str(Plan.parse("bsp/allreduce/int8+ef"))


def test_what_a_plan_was_given_up_for_is_what_is_kept() -> None:
    """A restart takes what is kept at once, and nobody watches over it then."""
    kept, model = list[PlanFile](), nn.Linear(2, 2)
    search = PlanSearch(allow="lossy", keep=kept.append)
    pilot = Pilot(model, Optimizers([adam(model.parameters())]), Cluster.uniform(2, 1e6, 1e-4), search, 24)
    run: Any = Watched()
    pilot.choice = choice.Choice(plan=str(run.plan), predicted_step_s=1.0, why=("it is fast",))
    pilot._plan_file = PlanFile(plan=str(run.plan), why=pilot.choice.why, predicted={"step_s": 1.0})
    pilot._lookout = Lookout(["bsp/allreduce/int8+ef"], run.plan)
    pilot._lookout.begin(run)
    while str(run.plan) == pilot.choice.plan:
        pilot.hear(math.nan)
        pilot.after_step(run, 0.0)
    assert [file.plan for file in kept] == [str(run.plan)]
    assert kept[0].predicted == {}
    assert "went back" in kept[0].why[0]


def test_noise_is_no_rise() -> None:
    levels = [LossLevel.of([2.0 + 0.3 * math.sin(7 * i + k) for i in range(40)]) for k in range(5)]
    assert not any(a.is_above(b) for a in levels for b in levels)
    assert LossLevel.of([1.0, math.nan]).is_above(levels[0])


def test_a_snapshot_holds_buffers_too() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    from tightwire.runtime.snapshot import Snapshot
    from tightwire.runtime.step import Optimizers

    snapshot = Snapshot(model, Optimizers([adam(model.parameters())]))
    model(torch.randn(4, 2))
    assert int(model[1].num_batches_tracked) == 1  # type: ignore[arg-type]
    snapshot.restore()
    assert int(model[1].num_batches_tracked) == 0  # type: ignore[arg-type]


def test_a_race_of_which_nobody_can_run_again_has_a_winner() -> None:
    """Steps that turn out far longer than expected leave no time for a second heat."""

    def worker(transport: Transport) -> str:
        with job(transport, FIELD[0], optimizer=adam) as j:
            entered = [contender(plan, 1e-7) for plan in FIELD]
            racing = Racing(Race(budget="1s"), entered, plan_heats(entered, 1e-5), 1e9)
            racing.begin(j.run)
            for number in range(10_000):
                if racing.winner is not None:
                    break
                step(j, number)
                racing.after_step(j.run, 1.0)
            assert racing.winner is not None
            return racing.winner.plan

    first, second = run_threads(2, worker, deadline_s=20)
    assert first == second


def test_losses_of_training_are_watched_from_where_the_winner_ended_whatever_a_judge_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A judge's loss is of other data, and in other units: beside it any loss of training may seem to have risen."""

    def worker(transport: Transport) -> tuple[list[float], float | None]:
        with job(transport, FIELD[0], optimizer=adam) as j:
            entered = [contender(plan) for plan in FIELD]
            racing = Racing(Race(budget="1s", judge=lambda: 0.01), entered, plan_heats(entered, 0.3), 1e9)
            racing.begin(j.run)
            number = 0
            while racing.winner is None:
                step(j, number)
                racing.after_step(j.run, 3.0 + 0.01 * (number % 2))
                number += 1
            return list(racing.losses), racing.winner.loss

    (losses, judged_as), _ = run_threads(2, worker, deadline_s=20)
    assert judged_as == 0.01
    assert losses
    assert all(3.0 <= loss <= 3.01 for loss in losses)

    levels: list[LossLevel | None] = []
    monkeypatch.setattr(auto.Pilot, "_tell", lambda *told: None)
    monkeypatch.setattr(auto.Pilot, "_look_out", lambda pilot, run, level: levels.append(level))
    pilot: Any = auto.Pilot.__new__(auto.Pilot)
    pilot._entered = choice.Choice(plan="bsp", predicted_step_s=1.0, why=())
    over: Any = types.SimpleNamespace(
        winner=dataclasses.replace(contender("bsp"), loss=0.01),
        losses=losses,
        contenders={},
        after_step=lambda run, loss: None,
        told=lambda: "won",
    )
    pilot._race(None, over, None)
    [level] = levels
    assert level is not None
    assert level.mean > 2.9
    assert level.error > 0  # few losses tell it roughly


def test_a_snapshot_holds_buffers_whose_elements_share_memory() -> None:
    from tightwire.runtime.snapshot import Snapshot
    from tightwire.runtime.step import Optimizers

    model, spread = nn.Linear(2, 2), torch.zeros(1).expand(3)
    model.register_buffer("spread", spread)
    snapshot = Snapshot(model, Optimizers([adam(model.parameters())]))
    spread[:1].fill_(2.0)
    snapshot.restore()
    assert spread.tolist() == [0.0, 0.0, 0.0]


def test_auto_goes_back_to_what_was_loaded_after_attaching(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not to what the model was before, which is what the first steps would be given up for."""
    chosen = choice.Choice(plan="bsp/allreduce/bf16/fusion", predicted_step_s=1e-9, why=("as told",))
    monkeypatch.setattr(auto, "choice_of", lambda ranking, in_the_way: chosen)

    def worker(transport: Transport) -> None:
        loaded = Net(seed=7)
        with job(transport, "auto", optimizer=adam, allow="stale") as j:
            assert str(j.run.plan) == first_steps.PARTING
            j.model.load_state_dict(loaded.state_dict())
            number = 0
            while not j.run.is_settled:
                step(j, number)
                number += 1
            assert j.run.plan == Plan.parse(chosen.plan)
            assert same(values(j.model), values(loaded))

    run_threads(2, worker, deadline_s=30)


def test_a_race_without_losses_ends_in_words() -> None:
    def worker(transport: Transport) -> None:
        with job(transport, FIELD[0], optimizer=adam) as j:
            entered = [contender(plan) for plan in FIELD]
            racing = Racing(Race(budget="1s"), entered, plan_heats(entered, 0.3), 1e9)
            racing.begin(j.run)
            for number in range(1000):
                step(j, number)
                racing.after_step(j.run, None if transport.rank else 1.0)

    with pytest.raises(AttachError, match="some rank told the loss of none"):
        run_threads(2, worker, deadline_s=20)


def test_training_that_ends_within_a_race_says_what_is_given_up(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered = [contender(plan) for plan in FIELD[:2]]
    monkeypatch.setattr(auto, "contenders", lambda ranking, in_the_way: entered)

    def worker(transport: Transport) -> list[str]:
        with job(transport, "race:100h", optimizer=adam, allow="stale") as j:
            for number in range(12):
                step(j, number)
        return [why for why in j.run.report().why if "in the midst of a race" in why]

    first, second = run_threads(2, worker, deadline_s=30)
    assert len(first) == 1
    assert "step 12: " in first[0]
    assert first == second


def test_auto_watches_the_loss_where_one_rank_alone_tells_it(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else that rank alone would come to meetings, and the other train on without it."""
    chosen = choice.Choice(plan="local:4/allreduce/none/fusion", predicted_step_s=1.0, why=("as told",))
    monkeypatch.setattr(auto, "choice_of", lambda ranking, in_the_way: chosen)
    steps = [0, 0]

    def worker(transport: Transport) -> None:
        with job(transport, "auto", optimizer=adam, allow="stale") as j:
            for number in range(80):
                steps[transport.rank] = number
                assert number - min(steps) <= 12, steps
                step(j, number, tells=transport.rank == 0)

    run_threads(2, worker, deadline_s=30)
