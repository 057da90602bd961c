"""What cannot be attached, and ranks that disagree: one clear sentence each, before the first step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.lobby import Elastic, Worker
from tests.runtime.training import Net, job, loss_of, same, sgd, values
from tightwire._attach import attach
from tightwire.errors import AttachError, MismatchError, PeerError, PlanError, TightwireError
from tightwire.plan import Plan, PlanFile, Route
from tightwire.transport import Single, Transport, run_threads


def refused(make: Callable[[], nn.Module], parameters: Any = None) -> str:
    """Attaches on two ranks, of which both must refuse; returns what the first said."""

    def worker(transport: Transport) -> str:
        model = make()
        with pytest.raises(TightwireError) as caught:
            attach(model, sgd(parameters or model.parameters()), "bsp", transport=transport)
        return f"{type(caught.value).__name__}: {caught.value}"

    return run_threads(2, worker, deadline_s=5)[0]


class DistributedDataParallel(nn.Module):
    """Goes by the name of the real one."""

    def __init__(self) -> None:
        super().__init__()
        self.module = Net()


class FSDPModule(nn.Module):
    """Goes by the name of the base that FSDP2 gives to its classes."""


class FSDPLinear(FSDPModule, nn.Linear):
    """What FSDP2 makes of a Linear."""


def frozen() -> nn.Module:
    return Net().requires_grad_(False)


STRANGER = [nn.Parameter(torch.zeros(3))]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: nn.Embedding(5, 3, sparse=True), "the model has sparse gradients"),
        (lambda: nn.Sequential(nn.EmbeddingBag(5, 3, sparse=True, mode="sum")), "0 has sparse gradients"),
        (DistributedDataParallel, "contains DistributedDataParallel, which averages gradients itself"),
        (lambda: nn.Sequential(FSDPLinear(2, 2)), "contains FSDPModule"),
        (frozen, "no parameter that requires gradients"),
        (lambda: nn.ParameterList([nn.Parameter(torch.zeros(2, dtype=torch.complex64))]), "complex64"),
    ],
)
def test_models_that_cannot_be_attached(make: Callable[[], nn.Module], said: str) -> None:
    assert said in refused(make)


def test_an_optimizer_of_other_parameters() -> None:
    assert "1 parameters that are not the model's" in refused(Net, parameters=STRANGER)


@pytest.mark.parametrize(
    ("plan", "error", "said"),
    [
        ("bsp/allreduce:ring/topk:0.1", PlanError, "Nearest legal"),
        ("nothing-of-the-kind", PlanError, "`tightwire methods` lists all "),
        (
            PlanFile(plan="bsp/allreduce:ring", routing=(Route(match="*", compression="topk:0.1"),)),
            PlanError,
            "the route of *",
        ),
        (
            PlanFile(plan="bsp", routing=(Route(match="*.shift", compression="none"),)),
            AttachError,
            "the route of *.shift by none matches no parameter of the model; its names are like scale, ",
        ),
        ("missing.yaml", TightwireError, "missing.yaml cannot be read"),
    ],
)
def test_plans_that_cannot_work(plan: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error) as caught:
        attach(Net(), sgd(Net().parameters()), plan, transport=Single())
    assert said in str(caught.value)


def test_what_cannot_be_attached_leaves_no_hook() -> None:
    def worker(transport: Transport) -> None:
        model = nn.Sequential(nn.Linear(2, 2), nn.ParameterList([torch.zeros(2, dtype=torch.complex64)]))
        optimizer = sgd(model.parameters())
        with pytest.raises(AttachError, match=r"1\.0 is complex"):
            attach(model, optimizer, "bsp", transport=transport)
        assert not optimizer._optimizer_step_pre_hooks
        assert not optimizer._optimizer_step_post_hooks
        assert not model._forward_hooks
        del model[1]
        attach(model, sgd(model.parameters()), "bsp", transport=transport).close()

    run_threads(2, worker, deadline_s=5)


@pytest.mark.parametrize("size", [1, 2])
def test_attaching_twice(size: int) -> None:
    def worker(transport: Transport) -> None:
        model = Net()
        with job(transport, "bsp", model=model):
            for again in (model, nn.Sequential(model), model.first):
                with pytest.raises(AttachError, match="attached already"):
                    attach(again, sgd(again.parameters()), "bsp", transport=transport)
        with job(transport, "bsp", model=model) as j:
            j.step(0)

    run_threads(size, worker, deadline_s=5)


def replace_child(model: Net) -> None:
    model.last = nn.Linear(7, 3)


def add_child(model: Net) -> None:
    model.extra = nn.Linear(7, 3)


def replace_parameter(model: Net) -> None:
    model.scale = nn.Parameter(torch.tensor(2.0))


@pytest.mark.parametrize("change", [replace_child, add_child, replace_parameter])
def test_a_model_changed_after_attaching(change: Callable[[Net], None]) -> None:
    def worker(transport: Transport) -> None:
        with job(transport, "bsp") as j:
            j.step(0)
            change(j.model)  # type: ignore[arg-type]
            with pytest.raises(AttachError, match="changed after it was attached"):
                j.step(1)

    run_threads(2, worker, deadline_s=5)


def test_a_model_that_changed_its_dtype() -> None:
    def worker(transport: Transport) -> None:
        with job(transport, "bsp") as j:
            j.step(0)
            j.model.double()
            j.optimizer.zero_grad()
            j.model(torch.zeros(1, 5).double()).sum().backward()
            with pytest.raises(AttachError, match=r"torch.float64.*it was .*torch.float32"):
                j.optimizer.step()

    run_threads(2, worker, deadline_s=5)


def test_a_parameter_that_thawed() -> None:
    def worker(transport: Transport) -> None:
        model = Net()
        model.first.requires_grad_(False)
        with job(transport, "bsp", model=model) as j:
            j.step(0)
            model.first.requires_grad_(True)
            with pytest.raises(
                AttachError, match="were frozen when the model was attached now require gradients"
            ):
                j.step(1)

    run_threads(2, worker, deadline_s=5)


def test_a_sparse_gradient_from_elsewhere() -> None:
    def worker(transport: Transport) -> None:
        model = nn.ParameterDict({"table": nn.Parameter(torch.ones(4, 2))})
        with job(transport, "bsp", model=model):
            rows = nn.functional.embedding(torch.tensor([1, 2]), model["table"], sparse=True)
            with pytest.raises(AttachError, match="parameter table has a sparse gradient"):
                rows.sum().backward()

    run_threads(2, worker, deadline_s=5)


def test_a_backward_pass_that_failed() -> None:
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("out of memory")

    def worker(transport: Transport) -> None:
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        with job(transport, "bsp", model=model) as j:
            with pytest.raises(RuntimeError, match="out of memory"):
                model[1](Broken.apply(model[0](torch.ones(1, 2)))).sum().backward()
            with pytest.raises(AttachError, match="did not end"):
                j.optimizer.step()
            with pytest.raises(AttachError, match="twice in one backward pass"):
                model(torch.ones(1, 2)).sum().backward()

    run_threads(2, worker, deadline_s=5)


def test_a_closed_run() -> None:
    def worker(transport: Transport) -> None:
        with job(transport, "bsp") as j:
            state = j.run.state_dict()
        for call in (j.run.finish, lambda: j.run.load_state_dict(state), lambda: j.run.adopt(j.run.plan)):
            with pytest.raises(AttachError, match="closed"):
                call()
        j.run.close()

    run_threads(2, worker, deadline_s=5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s | {"plan": "local:4"}, "made under the plan local:4"),
        (lambda s: s | {"version": 2}, "version 2"),
        (lambda s: {}, "from a dict of nothing, which is no state of a run"),
        (lambda s: {"model": 1}, "from a dict of model, which is no state of a run"),
        (lambda s: [torch.ones(1)], "from a list, which is no state of a run"),
        (lambda s: {"parts": {0: torch.ones(1)}}, "from a dict of parts, which is no state of a run"),
        (lambda s: s | {"rank": 1 - s["rank"]}, "every rank saves and loads its own"),
        (lambda s: s | {"engine": {"rounds": 1, "memory": {}}}, "again.weight, first.bias"),
    ],
)
def test_checkpoints_that_do_not_fit(change: Callable[[dict[str, Any]], Any], said: str) -> None:
    def worker(transport: Transport) -> None:
        model = Net()
        del model.first
        model.first = nn.Linear(5, 7)
        with job(transport, "bsp/allreduce/bf16+ef", model=model) as j:
            with pytest.raises(AttachError) as caught:
                j.run.load_state_dict(change(j.run.state_dict()))
            assert said in str(caught.value)

    run_threads(2, worker, deadline_s=5)


@pytest.mark.parametrize("plan", ["auto", "bsp/allreduce/topk:0.1+ef+momentum:0.9"])
def test_memory_that_does_not_fit_names_the_plan_to_go_on_under(plan: str) -> None:
    """As after `auto`, which begins under a plain plan, had chosen one that remembers."""
    states: dict[int, dict[str, Any]] = {}

    def save(transport: Transport) -> None:
        with job(transport, "bsp/allreduce/int8+ef") as j:
            j.step(0)
            states[transport.rank] = j.run.state_dict(gather=True)

    def load(transport: Transport) -> None:
        with job(transport, plan) as j, pytest.raises(AttachError) as caught:
            j.run.load_state_dict(states[0])
        said = str(caught.value)
        assert "It was saved under bsp/allreduce/int8+ef; this run's plan is bsp" in said
        assert "plan='bsp/allreduce/int8+ef')" in said

    run_threads(3, save, deadline_s=20)
    for workers in (3, 2):
        run_threads(workers, load, deadline_s=20)


@pytest.mark.parametrize("plan", ["bsp/allreduce/bf16+ef", "local:3", "bsp/gossip:ring"])
def test_parts_of_two_checkpoints_are_refused_on_all_ranks(plan: str) -> None:
    """As where fewer workers have saved to the folder of more."""

    def worker(transport: Transport) -> None:
        with job(transport, plan) as j:
            state = j.run.state_dict()
            with pytest.raises(
                MismatchError, match=r"rank 0 one of 2 workers.*; ranks 1 and 2 one of 3 workers"
            ):
                j.run.load_state_dict(state | {"workers": 2 if transport.rank == 0 else 3})

    run_threads(3, worker, deadline_s=20)


@pytest.mark.parametrize("plan", ["bsp/allreduce/bf16+ef", "local:3", "bsp/gossip:ring"])
def test_parts_of_two_steps_are_refused_on_all_ranks(plan: str) -> None:
    """As where a save was cut short, and some parts in the folder are of the one before."""

    def worker(transport: Transport) -> None:
        with job(transport, plan) as j:
            before, state = values(j.model), j.run.state_dict()
            with pytest.raises(
                MismatchError,
                match=r"ranks 0 and 2 one of 3 workers after step 6; rank 1 one of 3 workers after step 5",
            ):
                j.run.load_state_dict(state | {"step": 5 if transport.rank == 1 else 6})
            assert same(before, values(j.model))

    run_threads(3, worker, deadline_s=20)


@pytest.mark.parametrize(
    "plan", ["bsp/allreduce/bf16+ef", "local:3", "asp/gossip:ring,method=ad-psgd", "asp/ps"]
)
def test_workers_that_ended_unevenly_load_what_they_saved(plan: str) -> None:
    def worker(transport: Transport) -> None:
        with job(transport, plan) as j:
            for step in range(3 + transport.rank):
                j.step(step)
            j.run.finish()
            state = j.run.state_dict()
        with job(transport, plan) as j:
            j.run.load_state_dict(state)
            j.step(0)
            assert j.run.step == 4 + transport.rank
            state = j.run.state_dict()
        with job(transport, plan) as j:
            j.run.load_state_dict(state)

    run_threads(3, worker, deadline_s=20)


def test_a_checkpoint_of_another_number_of_workers() -> None:
    states: list[dict[str, Any]] = []

    def save(transport: Transport) -> None:
        with job(transport, "bsp/allreduce/bf16+ef") as j:
            j.step(0)
            states.append(j.run.state_dict())

    def load(transport: Transport) -> None:
        with job(transport, "bsp/allreduce/bf16+ef") as j:
            j.run.load_state_dict(states[0])
            assert j.run.step == 1
            engine = j.run.state_dict()["engine"]
            assert engine["rounds"] == 1
            assert not any(kinds["ef"].any() for kinds in engine["memory"].values())

    run_threads(2, save, deadline_s=5)
    with pytest.warns(UserWarning, match="made by 2 workers, this run has 3"):
        run_threads(3, load, deadline_s=5)


def wider() -> nn.Module:
    model = Net()
    model.last = nn.Linear(7, 4)
    return model


def narrower() -> nn.Module:
    model = Net()
    model.last = nn.Linear(7, 2)
    return model


def half() -> nn.Module:
    return Net().bfloat16()


def deeper() -> nn.Module:
    model = Net()
    model.more = nn.Linear(1, 1)
    return model


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        ({"plan": "local:4"}, ["plan: ranks 0, 1 and 3 have bsp; rank 2 has local:4"]),
        ({"plan": "bsp/gossip"}, ["plan: ranks 0, 1 and 3 have bsp; rank 2 has bsp/gossip"]),
        ({"plan": "bsp/ps:servers=1"}, ["plan: ranks 0, 1 and 3 have bsp; rank 2 has bsp/ps:servers=1"]),
        ({"make": wider}, ["parameter last.weight: ", "rank 2 has [4, 7] torch.float32", "ranks 0, 1 and 3"]),
        (
            {"make": narrower, "seed": 3},
            [
                "optimizer, parameters: ranks 0, 1 and 3 have 67 elements; rank 2 has 59 elements.",
                "(1 more difference)",
            ],
        ),
        ({"make": half}, ["rank 2 has [7, 5] torch.bfloat16", "more differences"]),
        ({"make": deeper}, ["parameter more.bias: ranks 0, 1 and 3 have nothing; rank 2 has [1]"]),
        ({"make": frozen}, ["frozen"]),
        ({"seed": 3}, ["seed: ranks 0, 1 and 3 have 0; rank 2 has 3"]),
        ({"buffers": "every-step"}, ["buffers: ", "rank 2 has every-step"]),
        ({"optimizer": torch.optim.AdamW}, ["optimizer: ranks 0, 1 and 3 have SGD; rank 2 has AdamW"]),
        (
            {"plan": PlanFile(plan="bsp", routing=(Route(match="*.bias", compression="bf16"),))},
            ["routing: ", "rank 2 has "],
        ),
    ],
)
def test_ranks_that_disagree(odd: dict[str, Any], said: list[str]) -> None:
    """Every rank ends with the same sentence, and nobody's parameters were touched."""

    def worker(transport: Transport) -> str:
        mine = {"plan": "bsp", "make": Net, "optimizer": torch.optim.SGD} | (
            odd if transport.rank == 2 else {}
        )
        model = mine.pop("make")()
        before = [p.clone() for p in model.parameters()]
        with pytest.raises(MismatchError) as caught:
            attach(
                model,
                mine.pop("optimizer")(model.parameters()),
                mine.pop("plan"),
                transport=transport,
                **mine,
            )
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        return str(caught.value)

    messages = run_threads(4, worker, deadline_s=5)
    assert len(set(messages)) == 1
    for words in said:
        assert words in messages[0]


def test_plans_that_mean_the_same_agree() -> None:
    def worker(transport: Transport) -> None:
        attach(
            model := Net(),
            sgd(model.parameters()),
            ("bsp", "bsp/allreduce/none")[transport.rank],
            transport=transport,
        ).close()

    run_threads(2, worker, deadline_s=5)


def test_a_rank_that_raises_is_named_to_the_others() -> None:
    """Nobody hangs; hooks are out; the thread of the run is gone."""

    def worker(transport: Transport) -> list[int]:
        blamed: list[int] = []
        model = Net()
        try:
            with job(transport, "bsp", model=model) as j:
                for step in range(4):
                    if transport.rank == 1 and step == 2:
                        raise RuntimeError("this rank's data is broken")
                    j.step(step)
        except PeerError as error:
            blamed = list(error.ranks)
        except RuntimeError:
            transport.close()
        loss_of(model, 0, 0).backward()  # no hook is left to wait for anybody
        return blamed

    assert run_threads(3, worker, deadline_s=5) == [[1], [], [1]]


@pytest.mark.parametrize("option", ["buffers", "allow"])
def test_a_word_that_would_pass_for_another_is_refused(option: str) -> None:
    model, told = Net(), {option: "every_step"}
    with pytest.raises(AttachError, match=f"{option}='every_step' is not known; write '"):
        attach(model, sgd(model.parameters()), "bsp", transport=Single(), **told)  # type: ignore[arg-type]


def test_a_run_whose_buffers_are_kept_equal_adopts_no_plan_that_cannot() -> None:
    """As a plan of its own such a one is refused; `auto` and races go by what `adopt` says."""

    def worker(transport: Transport) -> None:
        with job(transport, "bsp", buffers="every-step") as j:
            j.step(0)
            with pytest.raises(AttachError, match="leave buffers at 'start'"):
                j.run.adopt(Plan.parse("asp/ps"))
            with pytest.raises(AttachError, match="leave buffers at 'start'"):
                j.run.go_back(j.run.snapshot(), Plan.parse("asp/ps"))
            j.step(1)

    run_threads(2, worker, deadline_s=20)


def test_one_who_is_alone_for_now_in_an_elastic_job_adopts_no_such_plan_either() -> None:
    """Others may come at any time."""

    def train(transport: Transport, worker: Worker) -> bool:
        with job(transport, "bsp", buffers="every-step") as j:
            j.step(0)
            with pytest.raises(AttachError, match="leave buffers at 'start'"):
                j.run.adopt(Plan.parse("asp/ps"))
            j.step(1)
        return True

    assert Elastic(train, start=1, dies_at=[]).join() == [True]
