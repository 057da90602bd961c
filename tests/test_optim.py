"""Optimizers that learn variances from exact rounds: plain Adam and LAMB alone, told by the plan when attached."""

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn

from tests.runtime.training import Net, assert_close, batch, job, loss_of, values
from tightwire.errors import AttachError, PlanError
from tightwire.optim import ExactVariance, OneBitAdam, OneBitLamb
from tightwire.plan import Plan
from tightwire.transport import Transport, run_threads

KINDS = (OneBitAdam, OneBitLamb)


def step_alone(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        loss_of(model, 0, step).backward()
        optimizer.step()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_alone_it_is_adam(weight_decay: float) -> None:
    ours, theirs = Net(seed=1), Net(seed=1)
    step_alone(ours, OneBitAdam(ours.parameters(), 0.01, weight_decay=weight_decay), range(20))
    step_alone(theirs, torch.optim.AdamW(theirs.parameters(), 0.01, weight_decay=weight_decay), range(20))
    assert_close(values(ours), values(theirs), atol=1e-5)


def test_alone_it_is_lamb() -> None:
    """By the letters of LAMB's algorithm 2, in float64."""
    x, target = torch.linspace(1, 3, 7, dtype=torch.float64), torch.linspace(-1, 1, 7, dtype=torch.float64)
    p = nn.Parameter(x.clone())
    optimizer = OneBitLamb([p], 0.1, betas=(0.8, 0.9), weight_decay=0.01)
    m, v = torch.zeros_like(x), torch.zeros_like(x)
    for t in range(1, 6):
        g = x - target
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
        direction = (m / (1 - 0.8**t)) / ((v / (1 - 0.9**t)).sqrt() + 1e-8) + 0.01 * x
        x = x - 0.1 * x.norm() / direction.norm() * direction
        p.grad = (p - target).detach()
        optimizer.step()
        torch.testing.assert_close(p.detach(), x)


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_variance_stays_and_momentum_goes_on(kind: type[ExactVariance]) -> None:
    model = Net(seed=1)
    optimizer = kind(model.parameters())
    optimizer.learns = lambda step: step <= 3
    step_alone(model, optimizer, range(3))
    before = copy.deepcopy(optimizer.state_dict()["state"])
    step_alone(model, optimizer, range(3, 8))
    for name, state in optimizer.state_dict()["state"].items():
        assert torch.equal(state["exp_avg_sq"], before[name]["exp_avg_sq"])
        assert state["learnt"] == 3
        assert state["step"] == 8
        assert not state["exp_avg"].numel() or not torch.equal(state["exp_avg"], before[name]["exp_avg"])
    assert all(value.isfinite().all() for value in values(model))


@pytest.mark.parametrize("kind", KINDS)
def test_saving_loading_and_going_on_is_going_on(kind: type[ExactVariance]) -> None:
    def learns(step: int) -> bool:
        return step <= 3

    model = Net(seed=1)
    optimizer = kind(model.parameters())
    optimizer.learns = learns
    step_alone(model, optimizer, range(5))
    states = copy.deepcopy([model.state_dict(), optimizer.state_dict()])
    step_alone(model, optimizer, range(5, 9))
    other = Net(seed=7)
    again = kind(other.parameters())
    other.load_state_dict(states[0])
    again.load_state_dict(states[1])
    again.learns = learns
    step_alone(other, again, range(5, 9))
    assert all(torch.equal(a, b) for a, b in zip(values(model), values(other), strict=True))


def test_lamb_adapts_within_its_bounds() -> None:
    p = nn.Parameter(torch.ones(50))
    optimizer = OneBitLamb([p], 0.0)
    optimizer.learns = lambda step: step <= 2
    seen = []
    for step in range(60):
        p.grad = torch.full((50,), 1.0 if step < 2 else 1e-3)
        optimizer.step()
        seen.append(optimizer.state[p]["factor"])
    assert seen[:2] == [1.0, 1.0]
    assert max(b / a for a, b in itertools.pairwise(seen[1:])) <= 1.1 + 1e-9
    assert 1.0 < max(seen) <= 4.0


@pytest.mark.parametrize("options", [{"lr": -1.0}, {"betas": (1.0, 0.9)}, {"eps": -1e-8}])
def test_settings_that_cannot_work(options: dict[str, object]) -> None:
    with pytest.raises(PlanError, match="betas in"):
        OneBitAdam([nn.Parameter(torch.ones(1))], **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("recipe", ["onebit-adam:5", "onebit-lamb:5", "zero-one-adam:2"])
def test_the_plan_says_when_variances_learn(recipe: str) -> None:
    """One source of truth; moments are those of the agreed mean, on every rank alike."""
    kind = OneBitLamb if "lamb" in recipe else OneBitAdam

    def worker(transport: Transport) -> tuple[list[int], list[Tensor], list[Tensor], int]:
        with job(transport, f"bsp/allreduce/{recipe}", optimizer=lambda p: kind(p, 0.01)) as j:
            learnt = []
            for step in range(12):
                j.step(step)
                learnt.append(j.optimizer.state[j.model.last.weight]["learnt"])
        report = j.run.report()
        assert report.planned_bytes == report.sent_bytes
        averages = [
            kinds["ema"] for kinds in j.run.state_dict()["engine"]["memory"].values() if kinds["ema"].numel()
        ]
        moments = [state["exp_avg"] for state in j.optimizer.state.values() if state["exp_avg"].numel()]
        for average in averages:
            assert any(
                m.shape == average.shape and torch.allclose(m, average, rtol=1e-3, atol=1e-5) for m in moments
            )
        return learnt, values(j.model), moments, report.sent_bytes

    ended = run_threads(3, worker, deadline_s=20)
    exact = {1, 2, 3, 5, 7, 11} if "zero" in recipe else {1, 2, 3, 4, 5}
    assert ended[0][0] == [len([n for n in exact if n <= step]) for step in range(1, 13)]
    for _, parameters, moments, _ in ended:
        assert all(torch.equal(a, b) for a, b in zip(parameters, ended[0][1], strict=True))
        assert all(torch.equal(a, b) for a, b in zip(moments, ended[0][2], strict=True))


def test_warm_up_is_adam_on_the_mean() -> None:
    def worker(transport: Transport, plan: str, kind: type[torch.optim.Optimizer]) -> list[Tensor]:
        with job(transport, f"bsp/allreduce/{plan}", optimizer=lambda p: kind(p, lr=0.01)) as j:  # type: ignore[call-arg]
            for step in range(6):
                j.step(step)
        return values(j.model)

    ours = run_threads(3, lambda t: worker(t, "onebit-adam:6", OneBitAdam), deadline_s=20)[0]
    theirs = run_threads(3, lambda t: worker(t, "none", torch.optim.Adam), deadline_s=20)[0]
    assert_close(ours, theirs, atol=1e-4)


@pytest.mark.parametrize(
    ("plan", "make", "said"),
    [
        ("onebit-adam", lambda p: torch.optim.AdamW(p), "tightwire.optim.OneBitAdam"),
        ("onebit-adam:beta=0.8", lambda p: OneBitAdam(p), "give both the same"),
        ("doublesqueeze+ef+ema:0.9", lambda p: OneBitAdam(p), "no exact rounds"),
    ],
)
def test_optimizers_that_do_not_fit_are_refused(plan: str, make: object, said: str) -> None:
    def worker(transport: Transport) -> None:
        with pytest.raises(AttachError, match=said), job(transport, f"bsp/allreduce/{plan}", optimizer=make):  # type: ignore[arg-type]
            pass

    run_threads(2, worker, deadline_s=20)


def test_training_converges() -> None:
    """A regression that starts 0.34 away; a variance frozen when gradients were large makes late steps small."""

    def worker(transport: Transport, plan: str, kind: type[ExactVariance]) -> float:
        torch.manual_seed(0)
        model = nn.Linear(5, 64)
        with torch.no_grad():
            model.weight.fill_(0.1)
            model.bias.zero_()
        truth = torch.linspace(-1, 1, 64 * 5).view(64, 5)
        with job(
            transport,
            f"bsp/allreduce/{plan}",
            model=model,
            optimizer=lambda p: kind(p, 0.02, betas=(0.9, 0.99)),
        ) as j:
            for step in range(200):
                j.optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / 200)
                j.optimizer.zero_grad()
                x = batch(transport.rank, step)
                (model(x) - x @ truth.T).square().mean().backward()
                j.optimizer.step()
        return float((model.weight.detach() - truth).square().mean())

    for plan, kind in (
        ("none", OneBitAdam),
        ("onebit-adam:40", OneBitAdam),
        ("zero-one-adam:32", OneBitAdam),
    ):
        error = run_threads(3, lambda t, p=plan, k=kind: worker(t, p, k), deadline_s=60)[0]
        assert error < 0.02, (plan, error)


def test_recipes_say_what_they_stand_for() -> None:
    assert (
        str(Plan.parse("bsp/allreduce/onebit-adam:100"))
        == "bsp/allreduce/doublesqueeze+ef+ema:0.9+dense-first:100"
    )
    assert (
        str(Plan.parse("bsp/allreduce/zero-one-adam"))
        == "bsp/allreduce/doublesqueeze+ef+ema:0.9+dense-growing:16"
    )


def frozen(parameters: object, **options: object) -> OneBitAdam:
    return OneBitAdam(parameters, 0.01, **options)  # type: ignore[arg-type]


def end_of(transport: Transport, plan: str, steps: int = 12, **options: object) -> list[Tensor]:
    """Trains on the mean under bsp first, whose variance is then frozen, whatever the plan says next."""
    with job(transport, plan, optimizer=lambda p: frozen(p, **options)) as j:
        for step in range(steps):
            j.step(step)
            if step == 3 and "~" not in plan and "ema" not in plan:
                j.optimizer.learns = lambda step: False  # type: ignore[attr-defined]
    assert j.run.report().sent_bytes == j.run.report().planned_bytes
    return values(j.model)


@pytest.mark.parametrize(
    ("plan", "other", "options"),
    [
        ("bsp@4~local:1,state=momenta", "bsp", {}),
        ("bsp@4~local:8,doubling=99,state=momenta", "bsp", {"weight_decay": 0.1}),
        # Feedback is kept in units of γ·m: nearly one unit where biases are gone.
        (
            "bsp@4~local:1,state=momenta/allreduce/doublesqueeze+ef",
            "bsp/allreduce/doublesqueeze+ef+ema:0.01+dense-first:4",
            {"betas": (0.01, 0.999)},
        ),
    ],
)
def test_rounds_of_one_step_are_one_bit_adam(plan: str, other: str, options: dict[str, object]) -> None:
    ours, theirs = (
        run_threads(3, lambda t, p=p: end_of(t, p, **options), deadline_s=20) for p in (plan, other)
    )
    assert_close(ours[0], theirs[0], atol=1e-4 if "ef" in plan else 1e-5)
    for parameters in ours:
        assert all(torch.equal(a, b) for a, b in zip(parameters, ours[0], strict=True))


def test_local_rounds_by_the_letters_of_zero_one_adam() -> None:
    """x ← x_start − ū/(√v + ε) and m ← ū/Σγ, two workers with gradients of their own."""
    gradients = [[1.0, 3.0, -2.0, 0.5], [2.0, -1.0, 4.0, 1.5]]
    beta1, beta2, lr, eps = 0.8, 0.9, 0.1, 1e-8

    def worker(transport: Transport) -> tuple[float, float]:
        model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(model.weight)
        with job(
            transport,
            "bsp@1~local:3,state=momenta",
            model=model,
            optimizer=lambda p: OneBitAdam(p, lr, betas=(beta1, beta2), eps=eps),
        ) as j:
            for gradient in gradients[transport.rank]:
                j.optimizer.zero_grad()
                model(torch.full((1, 1), gradient)).sum().backward()
                j.optimizer.step()
            moment = float(j.optimizer.state[model.weight]["exp_avg"])
        return model.weight.item(), moment

    mean = sum(g[0] for g in gradients) / 2
    m0, v = (1 - beta1) * mean, (1 - beta2) * mean**2
    deviation = (v / (1 - beta2)) ** 0.5 + eps
    start = -lr / (1 - beta1) * m0 / deviation
    moved, rates = [0.0, 0.0], 0.0
    for rank in (0, 1):
        m, rates = m0, 0.0
        for t, gradient in enumerate(gradients[rank][1:], start=2):
            m = beta1 * m + (1 - beta1) * gradient
            moved[rank] += lr / (1 - beta1**t) * m
            rates += lr / (1 - beta1**t)
    u = sum(moved) / 2
    for x, m in run_threads(2, worker, deadline_s=20):
        assert x == pytest.approx(start - u / deviation, abs=1e-6)
        assert m == pytest.approx(u / rates, abs=1e-6)


@pytest.mark.parametrize("cut", [3, 5, 6])
def test_local_rounds_resume_within_a_round(cut: int) -> None:
    plan = "bsp/allreduce/zero-one-adam:2@3~local:4,doubling=2,state=momenta/allreduce/doublesqueeze+ef"

    def worker(transport: Transport) -> None:
        def make(p: object) -> OneBitAdam:
            return frozen(p, weight_decay=0.1)

        with job(transport, plan, optimizer=make) as j:
            for step in range(cut):
                j.step(step)
            saved = copy.deepcopy([j.model.state_dict(), j.optimizer.state_dict(), j.run.state_dict()])
            for step in range(cut, 12):
                j.step(step)
        with job(transport, plan, model=Net(seed=7), optimizer=make) as other:
            for part, state in zip((other.model, other.optimizer, other.run), saved, strict=True):
                part.load_state_dict(state)  # type: ignore[attr-defined]
            for step in range(cut, 12):
                other.step(step)
        assert all(torch.equal(a, b) for a, b in zip(values(j.model), values(other.model), strict=True))

    run_threads(3, worker, deadline_s=20)


def test_local_rounds_survive_a_poisoned_step_and_uneven_ends() -> None:
    def worker(transport: Transport) -> tuple[list[Tensor], int]:
        plan = "bsp@3~local:3,state=momenta/allreduce/doublesqueeze+ef"
        with job(transport, plan, optimizer=lambda p: frozen(p, weight_decay=0.1)) as j:
            for step in range(12 + 2 * transport.rank):
                j.step(step, factor=float("nan") if step == 7 and transport.rank == 1 else 1.0)
        assert j.run.report().sent_bytes == j.run.report().planned_bytes
        return values(j.model), j.run.report().skipped

    ended = run_threads(3, worker, deadline_s=20)
    for parameters, skipped in ended:
        assert skipped == 1
        assert all(
            p.isfinite().all() and torch.equal(p, q) for p, q in zip(parameters, ended[0][0], strict=True)
        )


@pytest.mark.parametrize(
    ("plan", "make", "said"),
    [
        ("local:4,state=momenta", torch.optim.AdamW, "tightwire.optim.OneBitAdam moved"),
        ("local:4,state=momenta", OneBitLamb, "tightwire.optim.OneBitAdam moved"),
        ("local:1,state=momenta", OneBitAdam, "has no variance yet"),
    ],
)
def test_local_rounds_of_momenta_need_a_frozen_variance(plan: str, make: object, said: str) -> None:
    def worker(transport: Transport) -> None:
        with pytest.raises(AttachError, match=said), job(transport, plan, optimizer=make) as j:  # type: ignore[arg-type]
            j.step(0)

    run_threads(2, worker, deadline_s=20)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_without_gradients_stay_where_they_are(kind: type[ExactVariance]) -> None:
    """1-bit messages hold something for every element of a block; unused rows must not be moved by it."""

    def worker(transport: Transport) -> Tensor:
        model = nn.Embedding.from_pretrained(start.clone(), freeze=False)
        with job(
            transport, "bsp/allreduce/onebit-adam:5", model=model, optimizer=lambda p: kind(p, 1e-2)
        ) as j:
            for step in range(40):
                j.optimizer.zero_grad()
                (model(torch.arange(20)) - torch.ones(8) * (step % 3)).square().mean().backward()
                j.optimizer.step()
        return model.weight.detach()

    start = torch.randn(
        50, 8, generator=torch.Generator().manual_seed(0)
    )  # the global one is shared by threads
    for weight in run_threads(2, worker, deadline_s=20):
        assert torch.equal(weight[20:], start[20:])
        assert (weight[:20] - start[:20]).abs().min() > 1e-4


def test_a_skipped_step_shifts_no_exact_round() -> None:
    """Rounds 1, 2, 4 and 8 are exact; the step of round 3 is skipped, as by a scaler."""

    def worker(transport: Transport) -> list[int]:
        plan = "bsp/allreduce/doublesqueeze+ef+ema:0.9+dense-growing:1"
        learnt = []
        with job(transport, plan, optimizer=lambda p: OneBitAdam(p, 1e-3)) as j:
            for step in range(1, 9):
                j.optimizer.zero_grad()
                loss_of(j.model, transport.rank, step).backward()
                if step != 3:
                    j.optimizer.step()
                    learnt.append(max(state["learnt"] for state in j.optimizer.state.values()))
        return learnt

    # The step of round 4 follows a skipped one, whose gradients nobody can tell were dropped.
    assert run_threads(2, worker, deadline_s=20)[0] == [1, 2, 2, 2, 2, 2, 3]
