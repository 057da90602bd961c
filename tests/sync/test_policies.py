"""What policies refuse, in words; phases; what runs tell and hear."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from tests.runtime.training import Net, adam, batch, job, same, train, train_all, values
from tightwire._attach import attach
from tightwire.errors import AttachError, PlanError, TightwireError
from tightwire.plan import Phases, Plan, PlanFile, Route
from tightwire.sync import MEMBERS, Sync
from tightwire.transport import Single, Transport, run_threads


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ("local:0", "never agree"),
        ("local:4,overlap=5", "cannot travel for 5 steps"),
        ("local:4,overlap=-1", "cannot travel for -1 steps"),
        ("local:4,state=shared", "none of kept, averaged, reset"),
        ("local:4,overlap=2,state=averaged", "goes on while its exchange travels"),
        ("local:4,overlap=2,doubling=3", "leave out doubling, or overlap"),
        ("local:4,doubling=-1", "0 for never"),
        ("local:4,doubling=3/gossip:ring", "those of gossip have one length"),
        ("local:4,doubling=3/allreduce/none/streaming:2", "those of streaming:2 have one length"),
        ("local:4,state=momenta/allreduce/int8+ema:0.9", "momenta, which are averages already"),
        ("local:4,momenta=-1", "numbers of rounds"),
        ("local:4,momenta=3,state=reset", "leave out state and overlap"),
        ("local:4,variances=3,overlap=1", "leave out state and overlap"),
        ("slowmo:4,state=momenta", "none of kept, averaged, reset"),
        ("postlocal:0,start=9", "never agree"),
        ("postlocal:4,start=0", "never is bsp; write local:4"),
        ("hierarchical-local:2,3", "multiple of H1"),
        ("hierarchical-local:0,2", "H1 is a number of optimizer steps"),
        ("adacomm:0", "H0 is a number"),
        ("adacomm:8,gamma=0", "gamma is by what rounds shorten"),
        ("adacomm:8,interval=0", "interval is a number"),
        ("easgd:0", "tau is a number"),
        ("easgd:4,alpha=1", "share of the distance"),
        ("slowmo:4,beta=1", "momentum 1.0 cannot be"),
        ("slowmo:4,alpha=0", "rate 0.0"),
        ("diloco:0", "H is a number"),
        ("diloco:8,outer_lr=0", "rate 0.0"),
        ("diloco:8,outer_lr=-0.7", "rate -0.7"),
        ("diloco:8,outer_momentum=1.5", "momentum 1.5 cannot be"),
        ("diloco:8,overlap=2,eager=true", "write overlap=8"),
        ("fedavg:4,fraction=0", "above 0 and at most 1"),
        ("fedavg:4,fraction=1.5", "above 0 and at most 1"),
        ("delayed:-1", "before they exist"),
        ("lag:-1", "at least 0"),
        ("gaia:-0.5", "at least 0"),
        ("gaia/allreduce/int8", "Nearest legal: gaia"),
        ("lag/allreduce/topk:0.01", "Nearest legal: lag"),
        ("gaia/allreduce:ring", "exchange of its own"),
        ("bsp/allreduce/none/streaming:4", "Nearest legal: diloco:64/allreduce/none/streaming"),
        ("diloco:8/allreduce/none/streaming:0", "at least 1 fragment"),
        ("diloco:8/allreduce/none/streaming:9", "rounds of 8 steps"),
        ("diloco:8,overlap=2/allreduce/none/streaming:2", "the schedule alone says"),
        ("diloco:8/gossip", "Nearest legal: diloco:8"),
        ("bsp~local:8", "until when"),
        ("bsp@9~local:8@5~bsp", "until when"),
        ("bsp@9", "until when"),
        ("bsp@9~postlocal:8,start=20", "phases within a phase"),
    ],
)
def test_what_cannot_be_says_why(plan: str, said: str) -> None:
    with pytest.raises(PlanError, match=said.replace("(", r"\(").replace(".", r"\.")):
        attach(Net(), torch.optim.SGD(Net().parameters()), plan, transport=Single())


@pytest.mark.parametrize("member", MEMBERS)
def test_texts_round_trip(member: Any) -> None:
    text = member.example or member.name
    for architecture in ("allreduce", "ps"):
        try:
            plan = Plan.parse(f"{text}/{architecture}")
        except PlanError:
            continue
        assert Plan.parse(str(plan)) == plan
    assert member.title
    assert member.paper


def test_the_plan_of_the_design() -> None:
    text = "diloco:64,outer_lr=0.7/allreduce:hierarchical/int4+ef/streaming:4"
    plan = Plan.parse(text)
    assert str(plan) == "diloco:64/allreduce:hierarchical/int4+ef/streaming"  # 0.7 and 4 are the defaults
    assert Plan.parse(str(plan)) == plan


def test_phases_are_one_value() -> None:
    phases = Phases.parse("bsp@2~local:2@6~local:2/allreduce/int8+ef")
    assert [str(phases.at(step).sync) for step in (1, 2, 3, 6, 7)] == [
        "bsp",
        "bsp",
        "local:2",
        "local:2",
        "local:2",
    ]
    assert Phases.parse(str(phases)) == phases
    assert str(Phases.parse("bsp")) == "bsp"


def test_a_plan_file_has_phases() -> None:
    plan_file = PlanFile(
        plan="bsp@2~local:2/allreduce/int8", routing=(Route(match="*.bias", compression="none"),)
    )
    assert len(plan_file.phases().plans) == 2
    with pytest.raises(PlanError, match="2 phases, where one plan"):
        plan_file.parse()
    for trained in train_all(3, plan_file):  # type: ignore[arg-type]
        assert trained.report.sent_bytes == trained.report.planned_bytes
        assert trained.report.plan == "bsp@2~local:2/allreduce/int8"


def test_phases_train_each_as_it_says() -> None:
    """Dense, then post-local, then compressed; every replica equal at the end, and in bsp after every step."""

    def worker(transport: Transport) -> list[Any]:
        trained = train(transport, "bsp@3~local:2@7~local:2/allreduce/topk:0.5+ef", steps=11)
        assert trained.report.sent_bytes == trained.report.planned_bytes
        assert trained.report.rounds == 3 + 2 + 2
        return [*trained.seen[:3], trained.seen[4], trained.seen[6], trained.parameters]

    first, *others = run_threads(3, worker, deadline_s=20)
    for other in others:
        assert all(same(a, b) for a, b in zip(first, other, strict=True))


def test_adacomm_needs_the_loss_and_follows_it() -> None:
    def silent(transport: Transport) -> None:
        with job(transport, "adacomm:2") as j:
            j.step(0)
            with pytest.raises(AttachError, match=r"run\.report_loss"):
                j.step(1)
            j.run.close()

    def falling(transport: Transport) -> list[int]:
        rounds = []
        with job(transport, "adacomm:8,interval=8") as j:
            for step in range(29):
                j.run.report_loss(torch.tensor(1.0 if step < 8 else 0.2, requires_grad=True))
                j.step(step)
                rounds.append(j.run.report().rounds)
        return rounds

    with pytest.raises(AttachError, match="closed"):
        run_threads(2, silent, deadline_s=20)
    # The first 8 steps say nothing of a fall: 8·√1 is not below 8, which is halved. A fifth of the loss asks for
    # ⌈8·√0.2⌉ = 4, which is not below 4: in 8 steps, two rounds, it is halved again, and after four more once again.
    for rounds in run_threads(2, falling, deadline_s=20):
        ends = [step for step in range(1, 29) if rounds[step] > rounds[step - 1]]
        assert ends == [7, 11, 15, 17, 19, 21, 23, 24, 25, 26, 27, 28]


def test_adacomm_lengthens_rounds_where_the_rate_fell() -> None:
    """η_0/η = 4 doubles what the loss asks for (equation 20 of arXiv:1810.08313); without `coupled` nothing does."""

    def lengths(transport: Transport, plan: str) -> list[int]:
        rounds = []
        with job(transport, plan) as j:
            for step in range(32):
                j.optimizer.param_groups[0]["lr"] = 0.1 if step < 16 else 0.025
                j.run.report_loss(torch.tensor(1.0 if step < 8 else 0.25, requires_grad=True))
                j.step(step)
                rounds.append(j.run.report().rounds)
        ends = [
            -1,
            *(step for step in range(32) if (step == 0 and rounds[0]) or rounds[step] > rounds[step - 1]),
        ]
        return [b - a for a, b in itertools.pairwise(ends)]

    coupled, free = (
        run_threads(2, lambda t, p=p: lengths(t, p), deadline_s=20)[0]
        for p in ("adacomm:8,interval=8,coupled=true", "adacomm:8,interval=8")
    )
    # 8; then half of it, for the loss had not fallen; then ⌈8·√¼⌉ = 4 is not below 4, and is halved.
    assert coupled[:7] == free[:7] == [8, 4, 4, 2, 2, 2, 2]
    assert coupled[7:] == [8]  # ⌈8·√(4·¼)⌉, once the rate fell
    assert free[7:] == [1] * 8


def test_samples_weigh_workers() -> None:
    """One worker has three samples, the other one: x moves by ¾ and ¼ of what they would."""

    def worker(transport: Transport) -> tuple[float, float]:
        model = torch.nn.Linear(1, 1, bias=False)
        with job(transport, "fedavg:1", model=model) as j:
            before = model.weight.item()
            j.run.report_samples(3 if transport.rank == 0 else 1)
            j.optimizer.zero_grad()
            (model.weight.sum() * (1.0 if transport.rank == 0 else -1.0)).backward()
            j.optimizer.step()
            return before, model.weight.item()

    for before, after in run_threads(2, worker, deadline_s=20):
        assert after - before == pytest.approx(-0.1 * (0.75 - 0.25), abs=1e-6)


def test_reset_and_averaged_state() -> None:
    def worker(transport: Transport) -> list[float]:
        momenta = []
        for state in ("kept", "averaged", "reset"):
            model = Net()
            with job(
                transport,
                f"local:2,state={state}",
                model=model,
                optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
            ) as j:
                for step in range(2):
                    j.step(step)
                kept = j.optimizer.state.get(model.scale, {}).get("momentum_buffer")
                momenta.append(float("nan") if kept is None else kept.item())
        return momenta

    (kept_0, averaged_0, reset_0), (kept_1, averaged_1, _) = run_threads(2, worker, deadline_s=20)
    assert kept_0 != kept_1
    assert averaged_0 == averaged_1 == pytest.approx((kept_0 + kept_1) / 2, abs=1e-6)
    assert reset_0 != reset_0  # there is none


def test_parts_of_the_state_are_averaged_each_with_a_period_of_its_own() -> None:
    """Des-LOC: whose moments differ and whose are equal after each of six rounds, and what that costs."""

    def worker(transport: Transport) -> list[tuple[bytes, bytes]]:
        seen = []
        with job(transport, "local:1,momenta=2,variances=3", optimizer=adam) as j:
            for step in range(6):
                j.step(step)
                kept = j.optimizer.state[j.model.scale]  # type: ignore[index]
                seen.append((kept["exp_avg"].numpy().tobytes(), kept["exp_avg_sq"].numpy().tobytes()))
        return seen

    for number, ((m_0, v_0), (m_1, v_1)) in enumerate(
        zip(*run_threads(2, worker, deadline_s=20), strict=True), 1
    ):
        assert (m_0 == m_1) == (number % 2 == 0)
        assert (v_0 == v_1) == (number % 3 == 0)


class Recorder:
    """Goes for a TensorBoard writer."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, float, int]] = []

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self.seen.append((tag, scalar_value, global_step))


def test_logging_and_the_report() -> None:
    def worker(transport: Transport) -> None:
        writer = Recorder()
        with job(transport, "delayed:1") as j:
            j.run.log_to(writer)
            for step in range(3):
                j.step(step)
        report = j.run.report()
        assert {tag for tag, _, _ in writer.seen} == {
            f"tightwire/{name}" for name in ("rounds", "sent_bytes", "waited_s", "step_s", "staleness")
        }
        assert {value for tag, value, _ in writer.seen if tag == "tightwire/staleness"} <= {0.0, 1.0}
        assert [step for tag, _, step in writer.seen if tag == "tightwire/rounds"] == [1, 2, 3]
        assert sum(report.staleness.values()) == 3
        assert "staleness" in str(report)
        assert "waited" in str(report)
        assert len(report.waited_s_by_worker) == transport.size

    run_threads(3, worker, deadline_s=20)


def test_nodes_that_do_not_divide_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)

    def attached(transport: Transport) -> None:
        for text in ("hierarchical-local:1,2,node=2", "hierarchical-local:1,2"):
            said = "do not make whole nodes.*write for example hierarchical-local:1,H2=2,node=3"
            with pytest.raises(AttachError, match=said), job(transport, text):
                pass

    run_threads(3, attached, deadline_s=20)


def test_an_elastic_force_that_overshoots() -> None:
    def worker(transport: Transport) -> None:
        with pytest.raises(PlanError, match="overshoots"), job(transport, "easgd:2,alpha=0.5"):
            pass

    run_threads(3, worker, deadline_s=20)


def test_more_fragments_than_tensors() -> None:
    def worker(transport: Transport) -> None:
        plan, model = "diloco:9/allreduce/none/streaming:8", torch.nn.Linear(2, 2)
        with pytest.raises(TightwireError, match="cuts the model into 8"), job(transport, plan, model=model):
            pass

    run_threads(2, worker, deadline_s=20)


def test_a_centre_is_the_mean_at_full_force() -> None:
    def worker(transport: Transport) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        with job(transport, "easgd:2,alpha=0.5") as j:
            j.step(0)
            j.optimizer.zero_grad()
            (j.model(batch(transport.rank, 1)) - transport.rank).square().mean().backward()
            gradients = [None if p.grad is None else p.grad.clone() for p in j.model.parameters()]
            before = [
                p - 0.1 * g if g is not None else p for p, g in zip(values(j.model), gradients, strict=True)
            ]
            j.optimizer.step()
            with j.run.evaluating():
                return before, values(j.model)

    (x_0, centre), (x_1, _) = run_threads(2, worker, deadline_s=20)
    for a, b, c in zip(x_0, x_1, centre, strict=True):
        torch.testing.assert_close((a + b) / 2, c, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "plan", ["local:2", "diloco:3/allreduce/int8+ef/streaming:3", "easgd:2", "local:3,overlap=3"]
)
def test_a_worker_leaves_between_rounds(plan: str, caplog: pytest.LogCaptureFixture) -> None:
    """The others go on with the mean of those who stay, and say so; rank 1 of four leaves after five steps."""

    def worker(transport: Transport) -> tuple[list[torch.Tensor], int]:
        with job(transport, plan) as j:
            for step in range(5 if transport.rank == 1 else 12):
                j.step(step)
            if transport.rank == 1:
                j.run.leave()
                with pytest.raises(AttachError, match="closed"):
                    j.run.finish()
        report = j.run.report()
        assert report.sent_bytes == report.planned_bytes
        return values(j.model), report.workers

    results = run_threads(4, worker, deadline_s=20)
    stayed = [result for rank, result in enumerate(results) if rank != 1]
    assert all(same(parameters, stayed[0][0]) for parameters, _ in stayed)
    assert not same(results[1][0], stayed[0][0])
    assert [workers for _, workers in stayed] == [3, 3, 3]
    assert "rank 1 left" in caplog.text
    assert "mean of 3" in caplog.text


def test_all_but_one_leave() -> None:
    def worker(transport: Transport) -> int:
        with job(transport, "local:2") as j:
            for step in range(3 + 4 * transport.rank):
                j.step(step)
            if transport.rank < 2:
                j.run.leave()
        return j.run.step

    assert run_threads(3, worker, deadline_s=20) == [3, 7, 11]


@pytest.mark.parametrize("plan", ["bsp", "hierarchical-local:1,2,node=2"])
def test_who_cannot_leave(plan: str) -> None:
    def worker(transport: Transport) -> None:
        with job(transport, plan) as j:
            j.step(0)
            with pytest.raises(AttachError, match=r"call run\.finish"):
                j.run.leave()
            j.step(1)

    run_threads(2, worker, deadline_s=20)


@pytest.mark.parametrize("plan", ["bsp@4~local:2", "postlocal:2,start=4", "local:2@3~bsp@6~local:3"])
def test_who_is_done_follows_the_phases_of_the_others(plan: str) -> None:
    def worker(transport: Transport) -> list[torch.Tensor]:
        with job(transport, plan) as j:
            for step in range(2 + 4 * transport.rank):
                j.step(step)
        report = j.run.report()
        assert report.sent_bytes == report.planned_bytes
        return values(j.model)

    results = run_threads(3, worker, deadline_s=20)
    assert all(same(parameters, results[0]) for parameters in results)


@pytest.mark.parametrize("missing", ["engine", "predictor", "deviation"])
def test_a_policy_that_does_not_declare_what_it_needs_is_an_error_when_its_class_is_made(
    missing: str,
) -> None:
    declared = {
        "name": "mute",
        "engine": "gradients",
        "predictor": "bulk",
        "deviation": property(lambda self: 1.0),
    }
    with pytest.raises(TypeError, match=f"mute does not declare its {missing}"):
        type("Mute", (Sync,), {key: value for key, value in declared.items() if key != missing})
