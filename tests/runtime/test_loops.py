"""Loops as people write them: closures, several optimizers, skipped passes, weights, hooks, uneven ends, resumes."""

from __future__ import annotations

import copy
import io
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from tests.runtime.training import (
    Job,
    Net,
    adam,
    assert_close,
    job,
    loss_of,
    momentum,
    plain,
    same,
    sgd,
    values,
)
from tightwire._attach import attach
from tightwire.errors import AttachError, MismatchError, PeerError
from tightwire.profile import measure_codecs, measure_pass
from tightwire.runtime import shortlist
from tightwire.runtime.habits import Habits, obstacles
from tightwire.runtime.membership import Called, Membership
from tightwire.runtime.step import Optimizers
from tightwire.transport import Single, Transport, run_threads

N = 2
# A plan of every engine.
PLANS = (
    "bsp",
    "bsp/allreduce:ring/none/p3",
    "delayed:1",
    "lag:0",
    "local:2",
    "gaia:0.01",
    "bsp/gossip:ring",
    "ssp:0/ps",
)


def on_threads(worker: Callable[[Transport], Any], n: int = N) -> list[Any]:
    return run_threads(n, worker, deadline_s=20)


def by_closure(j: Job, step: int) -> None:
    def closure() -> Tensor:
        j.optimizer.zero_grad()
        loss = loss_of(j.model, j.rank, step)
        loss.backward()
        return loss

    assert j.optimizer.step(closure) is not None


@pytest.mark.parametrize("plan", PLANS)
def test_a_closure_is_as_good_as_backward_and_step(plan: str) -> None:
    def worker(transport: Transport, step: Callable[[Job, int], None]) -> list[Tensor]:
        with job(transport, plan, optimizer=momentum) as j:
            for number in range(4):
                step(j, number)
        return values(j.model)

    called = on_threads(lambda t: worker(t, by_closure))
    plainly = on_threads(lambda t: worker(t, Job.step))
    assert same(called[0], plainly[0])
    assert same(called[0], called[1])


class Nested(SGD):
    """Its step calls its parent's."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


class FromElsewhere(SGD):
    """Not of torch.optim, as far as anybody can tell."""

    def step(self, closure: Any = None) -> Any:
        loss = closure() if closure else None
        super().step()
        return loss


def test_a_step_within_a_step_is_one_step() -> None:
    def worker(transport: Transport) -> int:
        with job(transport, "local:2", optimizer=lambda p: Nested(p, lr=0.1)) as j:
            for step in range(4):
                j.step(step)
        assert j.run.step == 4
        return j.run.report().rounds

    assert on_threads(worker) == [2, 2]


def test_a_step_that_raised_does_not_hide_the_next() -> None:
    class Breaks(SGD):
        broken = True

        def step(self, closure: Any = None) -> Any:
            if self.broken:
                raise ValueError("once")
            return super().step(closure)

    with job(Single(), "bsp", optimizer=lambda p: Breaks(p, lr=0.1)) as j:
        with pytest.raises(ValueError, match="once"):
            j.step(0)
        Breaks.broken = False
        j.step(1)
        assert j.run.step == 1


@pytest.mark.parametrize("plan", ["bsp", "bsp/allreduce:ring/none/p3", "delayed:1", "local:2", "lag:0"])
def test_several_optimizers_make_one_step(plan: str) -> None:
    def worker(transport: Transport) -> list[Tensor]:
        model = Net(transport.rank)
        matrices = SGD([p for p in model.parameters() if p.dim() == 2], lr=0.1)
        others = Adam([p for p in model.parameters() if p.dim() != 2], lr=0.01)
        with attach(model, [matrices, others], plan, transport=transport) as run:
            for step in range(4):
                model.zero_grad()
                loss_of(model, transport.rank, step).backward()
                matrices.step()
                others.step()
            assert run.step == 4
        return values(model)

    first, second = on_threads(worker)
    assert same(first, second)
    if plan == "bsp":
        expected = Net(0)
        matrices = SGD([p for p in expected.parameters() if p.dim() == 2], lr=0.1)
        others = Adam([p for p in expected.parameters() if p.dim() != 2], lr=0.01)
        for step in range(4):
            expected.zero_grad()
            (sum(loss_of(expected, rank, step) for rank in range(N)) / N).backward()  # type: ignore[union-attr]
            matrices.step()
            others.step()
        assert_close(first, values(expected))


def test_two_optimizers_with_a_backward_pass_each() -> None:
    def worker(transport: Transport, plan: str) -> list[Tensor]:
        model = Net(transport.rank)
        one, two = SGD(model.first.parameters(), lr=0.1), SGD(model.last.parameters(), lr=0.1)
        with attach(model, [one, two], plan, transport=transport):
            for step in range(3):
                for optimizer in (one, two):
                    model.zero_grad()
                    loss_of(model, transport.rank, step).backward()
                    optimizer.step()
        return values(model)

    first, second = on_threads(lambda t: worker(t, "bsp"))
    assert same(first, second)
    with pytest.raises(AttachError, match="exchanges gradients once per step"):
        on_threads(lambda t: worker(t, "delayed:1"))


def test_an_optimizer_inside_a_wrapper_is_taken_out() -> None:
    class Wrapper(Optimizer):
        def __init__(self, optimizer: Optimizer) -> None:
            self.optimizer = optimizer

    model = Net()
    inner = sgd(model.parameters())
    with attach(model, Wrapper(inner), "bsp", transport=Single()) as run:
        loss_of(model, 0, 0).backward()
        inner.step()
        assert run.step == 1
    with pytest.raises(AttachError, match=r"list is no torch\.optim\.Optimizer"):
        attach(model, [[]], "bsp", transport=Single())  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ("bsp/gossip:ring", r"unlike each other in gossip round 3.*Here: optimizer.*, lr 0\.(1|05)"),
        ("bsp/gossip:ring/choco:topk=0.5", "gossip round 3"),
        ("ssp:0/ps", r"train with other rates in their step 3: lr of group 0 is 0\.(1|05) and 0\.(1|05)"),
        ("asp/ps", "other rates in their step 3"),
    ],
)
def test_rates_that_part_where_there_is_no_roll(plan: str, said: str) -> None:
    def worker(transport: Transport, changes: Callable[[int, int], bool]) -> None:
        with job(transport, plan) as j:
            for step in range(5):
                if changes(step, transport.rank):
                    j.optimizer.param_groups[0]["lr"] = 0.05
                j.step(step)

    on_threads(lambda t: worker(t, lambda step, rank: step == 2))
    with pytest.raises((MismatchError, PeerError), match=said):
        on_threads(lambda t: worker(t, lambda step, rank: (step, rank) == (2, 1)))


def test_a_forward_pass_of_one_rank_alone() -> None:
    def worker(transport: Transport, look: Callable[[Job], Any]) -> None:
        with job(transport, "bsp") as j:
            for step in range(3):
                j.step(step)
                look(j)

    def in_training(j: Job) -> None:
        if j.rank == 0:
            loss_of(j.model, 0, 9)

    def evaluating(j: Job) -> None:
        with j.run.evaluating():
            in_training(j)

    on_threads(lambda t: worker(t, torch.no_grad()(in_training)))
    on_threads(lambda t: worker(t, evaluating))
    with pytest.raises(MismatchError, match=r"rank 0 has 1; rank 1 has 0\..*under torch\.no_grad"):
        on_threads(lambda t: worker(t, in_training))


@pytest.mark.parametrize(
    "plan", ["bsp", "bsp/allreduce:ring/none/p3", "delayed:1", "lag:0", "local:1", "gaia:0.01"]
)
def test_rates_that_part_on_the_way_are_named(plan: str) -> None:
    def worker(transport: Transport) -> None:
        with job(transport, plan) as j:
            for step in range(5):
                if step == 2 and transport.rank == 1:
                    j.optimizer.param_groups[0]["lr"] = 0.05
                j.step(step)

    with pytest.raises(MismatchError, match=r"optimizer, lr: rank 0 has 0\.1; rank 1 has 0\.05"):
        on_threads(worker)


@pytest.mark.parametrize(
    "option", [{"lr": 0.2}, {"weight_decay": 0.1}, {"lr": 0.1, "nesterov": True, "momentum": 0.9}]
)
def test_options_that_differ_are_refused_at_once(option: dict[str, Any]) -> None:
    def worker(transport: Transport) -> None:
        options = option if transport.rank else {"lr": 0.1}
        with job(transport, "bsp", optimizer=lambda p: SGD(p, **{"lr": 0.1, **options})):
            pass

    with pytest.raises(MismatchError, match=f"optimizer, {[*option][-1]}: rank 0 has"):
        on_threads(worker)


def test_whole_and_broken_numbers_are_equal() -> None:
    def worker(transport: Transport) -> None:
        with job(transport, "bsp", optimizer=lambda p: SGD(p, lr=1 if transport.rank else 1.0)) as j:
            j.step(0)

    on_threads(worker)


@pytest.mark.parametrize("plan", ["bsp", "bsp/allreduce:ring/none/p3", "delayed:1", "local:2", "lag:0"])
def test_a_rank_that_leaves_out_a_pass_is_named(plan: str) -> None:
    def worker(transport: Transport) -> None:
        with job(transport, plan) as j:
            for step in range(6):
                loss = loss_of(j.model, j.rank, step)
                if (step, j.rank) == (2, 1):
                    continue
                j.optimizer.zero_grad()
                loss.backward()
                j.optimizer.step()

    with pytest.raises(
        MismatchError, match=r"no backward pass followed: rank 0 has 0; rank 1 has 1.*run\.skip\(\)"
    ):
        on_threads(worker)


def test_passes_of_unlike_numbers_are_no_skipped_ones() -> None:
    def worker(transport: Transport) -> list[Tensor]:
        with job(transport, "bsp") as j:
            for step in range(3):
                j.optimizer.zero_grad()
                losses = [loss_of(j.model, j.rank, step + k) for k in range(1 + j.rank)]  # an episode each
                torch.stack(losses).sum().backward()
                j.optimizer.step()
                j.model.eval()
                if j.rank:
                    loss_of(j.model, j.rank, step)
                j.model.train()
        return values(j.model)

    first, second = on_threads(worker)
    assert same(first, second)


@pytest.mark.parametrize("plan", ["bsp", "bsp/allreduce/topk:0.5+ef", "bsp/allreduce:ring/none/p3"])
def test_a_skipped_pass_leaves_the_mean_to_the_others(plan: str) -> None:
    def worker(transport: Transport) -> list[Tensor]:
        with job(transport, plan) as j:
            for step in range(3):
                j.optimizer.zero_grad()
                loss = loss_of(j.model, j.rank, step)
                if (step, j.rank) == (1, 2):
                    j.run.skip()
                else:
                    loss.backward()
                j.optimizer.step()
        return values(j.model)

    results = on_threads(worker, n=3)
    assert same(results[0], results[1])
    assert same(results[0], results[2])
    if plan == "bsp":
        expected = Net(0)
        optimizer = sgd(expected.parameters())
        for step in range(3):
            optimizer.zero_grad()
            ranks = (0, 1) if step == 1 else (0, 1, 2)
            (sum(loss_of(expected, rank, step) for rank in ranks) / len(ranks)).backward()  # type: ignore[union-attr]
            optimizer.step()
        assert_close(results[0], values(expected))


@pytest.mark.parametrize("plan", ["bsp", "bsp/allreduce:ring/none/p3", "delayed:1", "local:1"])
def test_workers_weigh_by_their_tokens(plan: str) -> None:
    tokens = {0: (2, 30), 1: (10, 6)}

    def worker(transport: Transport) -> list[Tensor]:
        with job(transport, plan) as j:
            for step in range(2):
                j.run.weigh(tokens[j.rank][step])
                j.step(step)
        report = j.run.report()
        assert report.sent_bytes == report.planned_bytes
        return values(j.model)

    first, second = on_threads(worker)
    assert same(first, second)
    if plan == "delayed:1":
        return
    expected = Net(0)
    optimizer = sgd(expected.parameters())
    for step in range(2):
        optimizer.zero_grad()
        weights = [tokens[rank][step] for rank in range(N)]
        total = sum(w * loss_of(expected, rank, step) for rank, w in enumerate(weights))
        (total / sum(weights)).backward()  # type: ignore[union-attr]
        optimizer.step()
    assert_close(first, values(expected))


def test_weights_that_cannot_be() -> None:
    def worker(transport: Transport) -> None:
        with job(transport, "lag:0") as j:
            with pytest.raises(AttachError, match="count -1"):
                j.run.weigh(-1)
            with pytest.raises(AttachError, match="every worker counts alike"):
                j.run.weigh(2)

    on_threads(worker)


def test_what_is_left_out_stays_each_ranks_own() -> None:
    class Layer(nn.Module):
        def __init__(self, rank: int) -> None:
            super().__init__()
            self.shared, self.expert, self.router = nn.Linear(5, 4), nn.Linear(4, 4), nn.Linear(4, 3)
            for module in (self.expert, self.shared, self.router):
                nn.init.constant_(module.weight, 0.1 * (rank + 1))
                nn.init.zeros_(module.bias)

        def forward(self, x: Tensor) -> Tensor:
            return self.router(torch.tanh(self.expert(torch.tanh(self.shared(x)))))  # type: ignore[no-any-return]

    def worker(transport: Transport) -> tuple[Tensor, Tensor]:
        model = Layer(transport.rank)
        model._ddp_params_and_buffers_to_ignore = {"expert.bias"}  # type: ignore[assignment]
        with attach(
            model, SGD(model.parameters(), lr=0.1), "bsp", transport=transport, leave=["expert.w*"]
        ) as run:
            assert float(model.expert.weight[0, 0].detach()) == pytest.approx(0.1 * (transport.rank + 1))
            optimizer = run._optimizers.members[0]
            for step in range(2):
                optimizer.zero_grad()
                loss_of(model, transport.rank, step).backward()
                optimizer.step()
        return model.shared.weight.detach(), model.expert.weight.detach()

    (shared, expert), (shared_there, expert_there) = on_threads(worker)
    assert torch.equal(shared, shared_there)
    assert not torch.allclose(expert, expert_there)
    with pytest.raises(AttachError, match=r"leave='expert\*' matches no parameter"):
        attach(Net(), SGD(Net().parameters()), "bsp", transport=Single(), leave=["expert*"])


@pytest.mark.parametrize("before", [True, False])
def test_hooks_of_the_user_run_before_ours(before: bool) -> None:
    def halve(p: Tensor) -> None:
        assert p.grad is not None
        p.grad.mul_(0.5)

    def worker(transport: Transport) -> list[Tensor]:
        model = Net(transport.rank)
        if before:
            [p.register_post_accumulate_grad_hook(halve) for p in model.parameters()]
        with job(transport, "bsp", model=model) as j:
            if not before:
                [p.register_post_accumulate_grad_hook(halve) for p in model.parameters()]
            for step in range(3):
                j.step(step)
        return values(model)

    for parameters in on_threads(worker):
        assert_close(parameters, plain(N, steps=3, optimizer=lambda p: SGD(p, lr=0.05)))


def test_a_hook_that_takes_the_gradient_is_refused_by_name() -> None:
    def drop(p: Tensor) -> None:
        p.grad = None

    def worker(transport: Transport) -> None:
        with job(transport, "bsp") as j:
            j.model.last.bias.register_post_accumulate_grad_hook(drop)
            with pytest.raises(
                AttachError, match=r"parameter last\.bias was stepped, or its gradient taken away"
            ):
                loss_of(j.model, j.rank, 0).backward()
            j.run.close()
            raise KeyError("as expected")

    with pytest.raises(KeyError):
        on_threads(worker)


@pytest.mark.parametrize("plan", ["bsp", "bsp/allreduce:ring/none/p3", "bsp/allreduce/topk:0.3+ef"])
def test_gradients_that_were_dropped_do_not_come_back(plan: str) -> None:
    def worker(transport: Transport, *, twice: bool) -> list[Tensor]:
        with job(transport, plan) as j:
            for step in range(4):
                if twice:
                    (10 * loss_of(j.model, j.rank, step + 7)).backward()
                    j.optimizer.zero_grad()
                j.step(step)
        return values(j.model)

    once = on_threads(lambda t: worker(t, twice=False))
    dropped = on_threads(lambda t: worker(t, twice=True))
    assert same(once[0], dropped[0])


def test_create_graph_is_refused_in_words() -> None:
    def worker(transport: Transport) -> None:
        with job(transport, "bsp") as j:
            with pytest.raises(AttachError, match="create_graph=True"):
                loss_of(j.model, j.rank, 0).backward(create_graph=True)
            j.run.close()
            raise KeyError("as expected")

    with pytest.raises(KeyError):
        on_threads(worker)


@pytest.mark.parametrize("plan", ["local:2,overlap=2", "delayed:2", "diloco:2,overlap=1"])
def test_loading_drops_what_is_under_way(plan: str) -> None:
    def worker(transport: Transport) -> None:
        with job(transport, plan, optimizer=momentum) as j:
            j.step(0)
            j.step(1)
            saved = copy.deepcopy([j.model.state_dict(), j.optimizer.state_dict(), j.run.state_dict()])
            ends = []
            for _ in range(2):
                j.step(2)
                j.step(3)
                ends.append(values(j.model))
                j.model.load_state_dict(saved[0])
                j.optimizer.load_state_dict(saved[1])
                j.run.load_state_dict(saved[2])
        assert same(*ends)

    on_threads(worker)


@pytest.mark.parametrize(
    "plan",
    ["bsp/allreduce/topk:0.1+ef", "diloco:2", "easgd:2", "slowmo:2", "lag:0.1", "gaia:0.1", "delayed:1",
     "bsp/gossip:ring/int8+dcd", "diloco:2/gossip:random-matching,method=noloco", "asp/gossip:ring,method=ad-psgd",
     "ssp:1/ps"],
)  # fmt: skip
def test_nothing_moves_at_rate_0_after_a_resume_on_fewer_workers(plan: str) -> None:
    def first(transport: Transport) -> Any:
        with job(transport, plan) as j:
            for step in range(5):
                j.step(step)
            return copy.deepcopy([j.model.state_dict(), j.run.state_dict()])

    saved = run_threads(4, first, deadline_s=20)

    def second(transport: Transport) -> None:
        with job(transport, plan, model=Net(77), optimizer=lambda p: SGD(p, lr=0.0)) as j:
            j.model.load_state_dict(saved[transport.rank][0])
            j.run.load_state_dict(saved[transport.rank][1])
            before = values(j.model)
            for step in range(4):
                j.step(step)
            assert_close(before, values(j.model), atol=1e-6)  # a mean with oneself rounds

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        on_threads(second)


GATHERED = ["bsp", "bsp/allreduce/topk:0.1+ef", "bsp/allreduce/powersgd:1+ef", "local:4", "diloco:4,overlap=1",
            "easgd:2", "lag:0.1", "delayed:1/allreduce/int8+ef", "gaia:0.1", "ssp:0/ps",
            "bsp/gossip:ring/int8+choco", "diloco:3,quorum=0.75,grace=20s/allreduce/int8+ef"]  # fmt: skip


def in_file(job: Job) -> Any:
    """Returns what a file holds that rank 0 writes for all."""
    states = job.model.state_dict(), job.optimizer.state_dict(), job.run.state_dict(gather=True)
    file = io.BytesIO()
    torch.save(states, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


def take_up(job: Job, states: Any) -> None:
    job.model.load_state_dict(states[0])
    job.optimizer.load_state_dict(states[1])
    job.run.load_state_dict(states[2])


@pytest.mark.parametrize("plan", GATHERED)
def test_one_file_continues_on_as_many_workers(plan: str) -> None:
    def first(transport: Transport) -> Any:
        with job(transport, plan, optimizer=adam) as j:
            for step in range(5):
                j.step(step)
            saved = in_file(j)
            j.step(5)
            j.step(6)
        return saved, values(j.model)

    firsts = on_threads(first)
    assert firsts[1][0][2] == {}

    def second(transport: Transport) -> list[Tensor]:
        with job(transport, plan, model=Net(77), optimizer=adam) as j:
            take_up(j, copy.deepcopy(firsts[0][0]))
            j.step(5)
            j.step(6)
        return values(j.model)

    assert same(firsts[0][1], on_threads(second)[0])


@pytest.mark.parametrize("plan", ["bsp", "local:4", "diloco:4", "easgd:2", "bsp/gossip:ring/int8+choco"])
def test_a_file_that_is_saved_while_the_model_is_evaluated_continues(plan: str) -> None:
    """Trainers save after a validation, before what was lent for it is taken back."""

    def first(transport: Transport) -> Any:
        with job(transport, plan, optimizer=adam) as j:
            for step in range(5):
                j.step(step)
            with j.run.evaluating():
                lent, saved, own = values(j.model), in_file(j), copy.deepcopy(j.run.own_state()["model"])
                assert same(values(j.model), lent)
            assert all(torch.equal(own[name], t) for name, t in j.model.state_dict().items() if name in own)
            j.step(5)
            j.step(6)
        return saved, values(j.model)

    firsts = on_threads(first)

    def second(transport: Transport) -> list[Tensor]:
        with job(transport, plan, model=Net(77), optimizer=adam) as j:
            take_up(j, copy.deepcopy(firsts[0][0]))
            j.step(5)
            j.step(6)
        return values(j.model)

    assert same(firsts[0][1], on_threads(second)[0])


@pytest.mark.parametrize(("n", "m"), [(2, 3), (3, 1), (1, 2)])
@pytest.mark.parametrize("plan", [*GATHERED, "async-diloco:4/ps/int8+ef"])
def test_one_file_continues_on_any_number_of_workers(plan: str, n: int, m: int) -> None:
    def first(transport: Transport) -> Any:
        with job(transport, plan) as j:
            for step in range(5):
                j.step(step)
            return in_file(j)

    saved = on_threads(first, n)[0]
    parts = saved[2]["parts"]

    def second(transport: Transport) -> tuple[list[Tensor], Any, list[Tensor]]:
        with job(transport, plan, model=Net(77), optimizer=lambda p: SGD(p, lr=0.0)) as j:
            j.model.load_state_dict(saved[0])
            j.run.load_state_dict(copy.deepcopy(saved[2]))
            begun = values(j.model)
            assert j.run.step == 5
            remembered = j.run.state_dict()["engine"].get("memory", {})
        return begun, remembered, values(j.model)

    ends = on_threads(second, m)
    for begun, remembered, ended in ends:
        assert same(ended, ends[0][2])
        for number, name in enumerate(dict(Net().named_parameters())):
            if name in parts[0]["model"]:  # replicas differed: all begin from their mean
                assert_close([begun[number]], [sum(part["model"][name] for part in parts) / n])
            for kind, kept in (
                remembered.get(name, {}).items() if plan.endswith("+ef") and min(n, m) > 1 else ()
            ):
                owed = sum(part["run"]["engine"]["memory"][name][kind] for part in parts) / n
                assert_close([kept], [owed])
    if plan == "local:4":  # what was done since the last round is not lost
        assert_close(ends[0][2], ends[0][0])


def test_slow_momentum_keeps_the_last_steps_when_the_rate_reaches_0() -> None:
    def worker(transport: Transport) -> None:
        with job(transport, "slowmo:2,beta=0") as j:
            j.step(0)
            j.step(1)
            j.step(2)
            moved = values(j.model)
            j.optimizer.param_groups[0]["lr"] = 0.0
            at = values(j.model)
        assert same(moved, at)
        assert not same(j.seen[1], values(j.model))

    on_threads(worker)


def test_an_attached_model_can_be_pickled_and_copied() -> None:
    def worker(transport: Transport, plan: str) -> None:
        with job(transport, plan) as j:
            j.step(0)
            file = io.BytesIO()
            torch.save([j.model, j.optimizer], file)
            file.seek(0)
            model, _ = torch.load(file, weights_only=False)
            for copied in (model, copy.deepcopy(j.model)):
                assert same(values(copied), values(j.model))
                loss_of(copied, j.rank, 0).backward()  # meets nobody
            j.step(1)

    for plan in ("bsp", "bsp/allreduce:ring/none/p3", "local:2"):
        on_threads(lambda t, plan=plan: worker(t, plan))  # type: ignore[misc]


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (lambda: nn.LazyLinear(3), "weight has no shape yet"),
        (lambda: nn.ParameterList([torch.zeros(2, dtype=torch.complex64)]), "parameter 0 is complex"),
        (lambda: torch.compile(nn.Linear(2, 2)), ""),
    ],
)
def test_models_that_cannot_be_attached_say_why_and_stay_as_they_are(
    model: Callable[[], nn.Module], said: str
) -> None:
    def worker(transport: Transport) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, on lazy modules and compilers
            made = model()
        optimizer = SGD(made.parameters(), lr=0.1)
        if not said:
            attach(made, optimizer, "bsp", transport=transport).close()
            return
        with pytest.raises(AttachError, match=said):
            attach(made, optimizer, "bsp", transport=transport)

    on_threads(worker)


def test_an_expanded_buffer_is_made_equal() -> None:
    def worker(transport: Transport) -> float:
        model = nn.Linear(2, 2)
        model.register_buffer("mask", torch.full((1, 3), float(transport.rank + 1)).expand(4, 3))
        attach(model, sgd(model.parameters()), "bsp", transport=transport).close()
        return float(model.mask.sum())  # type: ignore[operator]

    assert on_threads(worker) == [12.0, 12.0]


@pytest.mark.parametrize("plan", ["bsp", "bsp/allreduce/int8+ef/bytescheduler"])
@pytest.mark.parametrize("longest", [0, 2])
def test_who_was_finished_scales_as_those_do_that_trained_meanwhile(plan: str, longest: int) -> None:
    """Else means of the next epoch would be of gradients in two scales."""

    def worker(transport: Transport) -> tuple[list[Tensor], list[float]]:
        model, scales = Net(), list[float]()
        optimizer = momentum(model.parameters())
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=5)  # type: ignore[attr-defined]
        with attach(model, optimizer, plan, transport=transport, scaler=scaler) as run:
            for steps in (6 if transport.rank == longest else 4, 4):  # two epochs
                for step in range(steps):
                    optimizer.zero_grad()
                    scaler.scale(loss_of(model, transport.rank, step)).backward()
                    scaler.step(optimizer)
                    scaler.update()
                run.finish()
                scales.append(scaler.get_scale())
        return values(model), scales

    ends = run_threads(3, worker, deadline_s=20)
    assert all(same(ends[0][0], parameters) for parameters, _ in ends)
    assert [scales for _, scales in ends] == [[16.0, 32.0]] * 3


def test_a_scaler_on_some_ranks_alone_is_refused() -> None:
    def worker(transport: Transport) -> str:
        model = Net()
        scaler = torch.amp.GradScaler("cpu") if transport.rank else None  # type: ignore[attr-defined]
        with pytest.raises(MismatchError) as caught:
            attach(model, sgd(model.parameters()), "bsp", transport=transport, scaler=scaler)
        return str(caught.value)

    assert all("the GradScaler" in said for said in run_threads(2, worker, deadline_s=20))


def uneven(transport: Transport, plan: str, steps: tuple[int, int], **options: Any) -> list[Tensor]:
    with job(transport, plan, **options) as j:
        for step in range(steps[transport.rank]):
            j.step(step)
    report = j.run.report()
    assert report.sent_bytes == report.planned_bytes
    return [*values(j.model), *(b.clone() for b in j.model.buffers())]


class Normed(nn.Module):
    """With statistics of its own."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.net, self.norm = Net(seed), nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.net(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize("steps", [(2, 7), (7, 2)])
@pytest.mark.parametrize("plan", ["bsp/allreduce/none/mgwfbp", "bsp/allreduce/none/pace", "local:2", "bsp"])
def test_a_rank_that_ends_early_follows_the_others(plan: str, steps: tuple[int, int]) -> None:
    first, second = on_threads(lambda t: uneven(t, plan, steps))
    assert same(first, second)


@pytest.mark.parametrize("steps", [(2, 5), (5, 2)])
@pytest.mark.parametrize("plan", ["bsp", "local:2", "lag:0", "delayed:2", "bsp/allreduce/none/dear"])
def test_buffers_follow_whoever_still_trains(plan: str, steps: tuple[int, int]) -> None:
    first, second = on_threads(lambda t: uneven(t, plan, steps, model=Normed(t.rank), buffers="every-step"))
    assert same(first, second)


@pytest.mark.parametrize(
    ("plan", "steps"),
    [("bsp", [1, 2, 3, 4, 5]), ("delayed:1", [1, 2, 3, 4, 5]), ("local:2", [2, 4]), ("bsp/gossip:ring", [])],
)
def test_when_buffers_are_copied(plan: str, steps: list[int]) -> None:
    def train(transport: Transport) -> list[int]:
        seen = list[int]()
        with job(transport, plan, model=Normed(transport.rank), buffers="every-step") as j:
            sent = 0
            for step in range(5):
                j.step(step)
                sent, before = j.run.report().buffer_bytes, sent
                if sent > before:
                    seen.append(j.run.step)
        if j.run.report().buffer_bytes > sent:
            seen.append(0)
        return seen

    assert on_threads(train)[0] == [*steps, 0]  # rank 0 sends, and once more at the end


@pytest.mark.parametrize("plan", ["delayed:1", "acco", "bsp/allreduce/none/dear"])
def test_who_hears_late_who_trained_copies_buffers_at_the_same_step(
    plan: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else another would wait for it there, and it for the other in the last meeting."""
    note = Membership.note

    def note_late(self: Membership, called: Called, size: int) -> None:
        if self is late[0]:
            time.sleep(0.02)
        note(self, called, size)

    def train(transport: Transport) -> list[Tensor]:
        with job(transport, plan, model=Normed(transport.rank), buffers="every-step") as j:
            if transport.rank == 0:
                late.append(j.run.course.now.context.membership)
            for step in range(3):
                j.step(step)
        return [*values(j.model), *(b.clone() for b in j.model.buffers())]

    late: list[Membership] = []
    monkeypatch.setattr(Membership, "note", note_late)
    first, second = on_threads(train)
    assert same(first, second)


def test_evaluating_has_one_model_with_its_statistics() -> None:
    def worker(transport: Transport) -> tuple[Tensor, Tensor]:
        with job(transport, "local:3", model=Normed(transport.rank)) as j:
            for step in range(4):
                j.step(step)
            own = j.model.norm.running_mean.clone()  # type: ignore[union-attr, operator]
            with j.run.evaluating():
                j.model.eval()
                out = j.model(torch.ones(2, 5)).detach()
                j.model.train()
            assert torch.equal(own, j.model.norm.running_mean)  # type: ignore[arg-type]
        return out, own

    (out, own), (out_there, own_there) = on_threads(worker)
    assert torch.equal(out, out_there)
    assert not torch.equal(own, own_there)


def test_gradients_accumulated_at_the_end_are_reported() -> None:
    def worker(transport: Transport) -> None:
        with job(transport, "bsp") as j:
            j.step(0)
            with j.run.accumulate():
                loss_of(j.model, j.rank, 1).backward()

    with pytest.warns(UserWarning, match="accumulated after step 1 are dropped"):
        on_threads(worker)


def test_an_optimizer_that_never_steps_is_warned_of() -> None:
    def worker(transport: Transport) -> None:
        model = Net(transport.rank)
        unused, steps = sgd(model.parameters()), sgd(model.parameters())
        with attach(model, unused, "local:2", transport=transport):
            for step in range(3):
                steps.zero_grad()
                loss_of(model, transport.rank, step).backward()
                steps.step()

    with pytest.warns(UserWarning, match="of the attached optimizer was never called"):
        on_threads(worker)


def test_a_model_inside_ddp_is_refused_in_its_first_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def worker(transport: Transport) -> None:
        with job(transport, "bsp") as j, pytest.raises(AttachError, match=r"tw\.ddp_hook\(plan\)"):
            j.model(torch.ones(1, 5))

    monkeypatch.setattr(nn.parallel.DistributedDataParallel, "_active_ddp_module", object())
    on_threads(worker)


@pytest.mark.parametrize(
    ("plan", "optimizer", "said"),
    [
        ("bsp/allreduce/int8+ef", torch.optim.LBFGS, "LBFGS divides by differences of gradients"),
        ("bsp/gossip:ring", torch.optim.LBFGS, "mixes parameters"),
        ("ssp:1/ps", torch.optim.LBFGS, "a server steps, which has no loss"),
        ("delayed:1", torch.optim.LBFGS, "LBFGS computes gradients within its step"),
    ],
)
def test_lbfgs_is_refused_where_it_goes_wrong(plan: str, optimizer: type[Optimizer], said: str) -> None:
    def worker(transport: Transport) -> None:
        model = Net()
        with pytest.raises(AttachError, match=said):
            attach(model, optimizer(model.parameters()), plan, transport=transport)  # type: ignore[call-arg]

    on_threads(worker)


@pytest.mark.parametrize("plan", ["local:2", "bsp/gossip:ring"])
def test_an_optimizer_with_a_copy_of_the_parameters_is_refused_where_only_those_are_averaged(
    plan: str,
) -> None:
    class ScheduleFree(SGD):
        def train(self) -> None: ...
        def eval(self) -> None: ...

    def worker(transport: Transport) -> None:
        with pytest.raises(AttachError, match="ScheduleFree makes parameters anew"):
            attach(model := Net(), ScheduleFree(model.parameters()), plan, transport=transport)

    on_threads(worker)


def test_servers_train_at_a_whole_rate() -> None:
    def worker(transport: Transport) -> None:
        with job(transport, "asp/ps", optimizer=lambda p: SGD(p, lr=1)) as j:
            before = values(j.model)
            j.step(0)
            j.step(1)
            assert not same(before, values(j.model))

    on_threads(worker)


def test_a_servers_optimizer_that_fails_is_named_everywhere() -> None:
    class Breaks(SGD):
        def step(self, closure: Any = None) -> Any:
            if any(p.grad is not None for group in self.param_groups for p in group["params"]):
                raise RuntimeError("boom")

    said = []

    def worker(transport: Transport) -> None:
        try:
            with job(transport, "ssp:0/ps:shards=1", optimizer=lambda p: Breaks(p, lr=0.1)) as j:
                j.step(0)
        except PeerError as error:
            said.append(str(error))

    on_threads(worker, n=3)
    assert said == ["rank 0, which serves a shard, failed: Breaks raised RuntimeError: boom"] * 3


def test_servers_refuse_what_they_would_not_step() -> None:
    def worker(transport: Transport) -> None:
        model = Net(transport.rank)
        one, two = SGD(model.first.parameters(), lr=0.1), SGD(model.last.parameters(), lr=0.1)
        with pytest.raises(AttachError, match="2 were attached"):
            attach(model, [one, two], "ssp:0/ps", transport=transport)
        with attach(model, one, "ssp:0/ps", transport=transport) as run:
            loss_of(model, transport.rank, 0).backward()
            two.step()
            with pytest.raises(AttachError, match=r"last\.weight among them, are changed by something else"):
                one.step()
            one.add_param_group({"params": [model.scale]})
            with pytest.raises(AttachError, match="groups changed after it was attached"):
                one.step()
            run.close()

    with pytest.raises(AttachError, match="closed"):
        on_threads(worker)


def test_gossip_refuses_a_scaler() -> None:
    def worker(transport: Transport) -> None:
        scaler = torch.amp.GradScaler("cpu")  # type: ignore[attr-defined]
        with (
            pytest.raises(AttachError, match="a GradScaler drops a step"),
            job(transport, "bsp/gossip", scaler=scaler),
        ):
            pass

    on_threads(worker)


def test_auto_keeps_out_of_the_way_of_a_loop_that_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortlist, "known_costs", lambda texts, **options: ((), 1e-9))  # takes seconds

    def worker(transport: Transport) -> str:
        with job(transport, "auto", optimizer=adam) as j:
            for step in range(14):
                j.optimizer.zero_grad()
                loss_of(j.model, j.rank, step).backward()
                nn.utils.clip_grad_norm_(j.model.parameters(), 0.5)
                j.optimizer.step()
            report = j.run.report()
            assert report.considered
            assert not j.run.plan.schedule.overlaps_forward
        return report.plan

    first, second = on_threads(worker)
    assert first == second


def test_measuring_draws_no_numbers_of_the_users() -> None:
    state = torch.get_rng_state()
    measure_codecs(["int8"], numel=64, samples=1)
    measure_pass(numel=64, samples=1)
    assert torch.equal(state, torch.get_rng_state())


def test_a_gradient_that_is_touched_is_waited_for_where_auto_chose_the_schedule() -> None:
    def worker(transport: Transport, habits: Habits | None) -> list[Tensor]:
        model = Net(transport.rank)
        optimizer = sgd(model.parameters())
        with attach(
            model, optimizer, "bsp/allreduce:ring/none/p3" if habits else "bsp", transport=transport
        ) as run:
            if habits:
                run._context.__dict__["habits"] = habits
                run.adopt(run.plan)
            for step in range(3):
                optimizer.zero_grad()
                loss_of(model, transport.rank, step).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                optimizer.step()
        return values(model)

    plainly = on_threads(lambda t: worker(t, None))[0]
    habits = Habits()
    assert same(plainly, on_threads(lambda t: worker(t, habits))[0])
    model = Net()
    said = obstacles(model, Optimizers([FromElsewhere(model.parameters(), lr=0.1)]), habits, forwards=0)
    assert [sentence.split()[0] for sentence in said] == ["gradients", "the", "FromElsewhere"]
