"""What integrations with trainers share: each rank's part of a checkpoint, and plans that DDP can carry out."""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.runtime.training import Job, adam, job, same, values
from tightwire.errors import AttachError, FileError, MismatchError, PlanError
from tightwire.integrations._parts import path_of, read, write
from tightwire.integrations.accelerate import _OwnParts, _parts_of
from tightwire.integrations.ddp import ddp_hook
from tightwire.integrations.fsdp import fsdp_hook
from tightwire.plan import PlanFile
from tightwire.transport import Single, Transport, run_threads


def test_parts_of_more_workers_do_not_outlive_a_checkpoint_of_fewer(tmp_path: Path) -> None:
    for rank in range(4):
        write({"step": 10}, tmp_path, rank=rank, workers=4)
    (tmp_path / "tightwire_notes.pt").touch()
    for rank in range(2):
        write({"step": 20}, tmp_path, rank=rank, workers=2)
    assert {path.name for path in tmp_path.iterdir()} == {
        "tightwire_0.pt",
        "tightwire_1.pt",
        "tightwire_notes.pt",
    }
    assert all(torch.load(path_of(tmp_path, rank))["step"] == 20 for rank in range(2))


def test_a_checkpoint_after_the_run_is_of_the_model_alone(tmp_path: Path) -> None:
    def worker(transport: Transport) -> None:
        with job(transport, "bsp", optimizer=adam) as j:
            j.step(0)
        parts = _OwnParts(j.run)
        parts.save(None, None, str(tmp_path))
        parts.remember(None, str(tmp_path))
        parts.load_state_dict({})

    run_threads(2, worker, deadline_s=20)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("plan", ["plan.yaml", Path("plan.yaml"), PlanFile(plan="bsp")])
@pytest.mark.parametrize("who", ["DDP", "FSDP"])
def test_hooks_say_what_to_give_of_a_plan_file(plan: Any, who: str) -> None:
    hook: Any = ddp_hook if who == "DDP" else functools.partial(fsdp_hook, nn.Linear(2, 2))
    with pytest.raises(PlanError, match=rf"is what {who} takes: of a plan file give tw.PlanFile.read"):
        hook(plan, transport=Single())


def test_a_checkpoint_of_ray_that_holds_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = SimpleNamespace(as_directory=lambda: contextlib.nullcontext(str(tmp_path)))
    stand_in: Any = ModuleType("ray")
    stand_in.train = SimpleNamespace(get_checkpoint=lambda: checkpoint)
    monkeypatch.setitem(sys.modules, "ray", stand_in)
    monkeypatch.delitem(sys.modules, "tightwire.integrations.ray", raising=False)
    integration = importlib.import_module("tightwire.integrations.ray")
    monkeypatch.delitem(sys.modules, "tightwire.integrations.ray")
    with job(Single(), "bsp") as j, pytest.raises(AttachError, match=r"no tightwire.pt: it is not one of"):
        integration.resume(j.run, j.model, j.optimizer)


def saved(workers: int, plan: str, folder: Path) -> list[Any]:
    """Returns, by rank, model, optimizer and what is gathered; each rank's part goes to the folder."""

    def worker(transport: Transport) -> Any:
        with job(transport, plan, optimizer=adam) as j:
            for step in range(5):
                j.step(step)
            _OwnParts(j.run).save(None, None, str(folder))
            return copy.deepcopy(
                [j.model.state_dict(), j.optimizer.state_dict(), j.run.state_dict(gather=True)]
            )

    return run_threads(workers, worker, deadline_s=20)


def load(j: Job, states: Any, folder: Path | None) -> None:
    """Loads what a trainer does, and then the parts in a folder; or what was gathered."""
    states = copy.deepcopy(states)
    j.model.load_state_dict(states[0])
    j.optimizer.load_state_dict(states[1])
    if folder is None:
        j.run.load_state_dict(states[2])
    else:
        part = _OwnParts(j.run)
        part.remember(None, str(folder))
        part.load_state_dict({})


@pytest.mark.parametrize(
    "plan", ["bsp/allreduce/topk:0.1+ef", "local:4", "diloco:4", "ssp:0/ps", "bsp/gossip:ring"]
)
@pytest.mark.parametrize("workers", [2, 3, 4])
def test_a_folder_of_parts_is_as_good_as_what_is_gathered(plan: str, workers: int, tmp_path: Path) -> None:
    states = saved(3, plan, tmp_path)[0]

    def worker(transport: Transport, folder: Path | None) -> list[Tensor]:
        with job(transport, plan, optimizer=adam) as j:
            load(j, states, folder)
            assert j.run.step == 5
            j.step(5)
        return values(j.model)

    gathered = run_threads(workers, lambda t: worker(t, None), deadline_s=20)
    assert same(gathered[0], run_threads(workers, lambda t: worker(t, tmp_path), deadline_s=20)[0])


def test_a_folder_that_lacks_parts_is_told_of(tmp_path: Path) -> None:
    plan = "bsp/allreduce/topk:0.1+ef"
    states = saved(3, plan, tmp_path)[0]
    path_of(tmp_path, 1).unlink()

    def worker(transport: Transport) -> None:
        with job(transport, plan, optimizer=adam) as j:
            load(j, states, tmp_path)
            assert j.run.step == 5

    with pytest.warns(
        UserWarning, match="3 workers, this run has 2, and only the part of ranks 0 and 2 was loaded"
    ):
        run_threads(2, worker, deadline_s=20)


def test_a_folder_of_two_saves_is_refused(tmp_path: Path) -> None:
    plan = "bsp/allreduce/topk:0.1+ef"
    saved(3, plan, tmp_path)
    part = torch.load(path_of(tmp_path, 1))
    part["run"]["step"] = 3
    torch.save(part, path_of(tmp_path, 1))

    def worker(transport: Transport) -> None:
        with job(transport, plan, optimizer=adam) as j:
            before, part = values(j.model), _OwnParts(j.run)
            part.remember(None, str(tmp_path))
            with pytest.raises(
                MismatchError,
                match=r"rank\S* .*of 3 workers after step 5; rank 1 .*of 3 workers after step 3",
            ):
                part.load_state_dict({})
            assert same(before, values(j.model))

    for workers in (2, 3):
        run_threads(workers, worker, deadline_s=20)


@pytest.mark.parametrize("workers", [2, 4])
def test_a_hook_takes_up_what_the_mean_is_owed(workers: int, tmp_path: Path) -> None:
    for rank in range(3):
        memory = {"weight": {"ef": torch.tensor([float(rank)])}}
        state = {"version": 1, "plan": "", "rank": rank, "workers": 3, "rounds": 7, "memory": memory}
        write(state, tmp_path, rank=rank, workers=3)

    def worker(transport: Transport) -> None:
        hook = ddp_hook("bsp/allreduce/topk:0.1+ef", transport=transport)
        parts = read(tmp_path, rank=transport.rank, workers=workers)
        assert parts is not None
        hook.load_state_dict(parts)
        state = hook.state_dict()
        hook.close()
        assert (state["rounds"], state["memory"]["weight"]["ef"].tolist()) == (7, [1.0])
        parts["parts"][0]["rounds"] = 6
        with pytest.raises(MismatchError, match="rank 0 of 3 workers after round 6; ranks 1 and 2"):
            hook.load_state_dict(parts)

    run_threads(workers, worker, deadline_s=20)


@pytest.mark.parametrize("plan", ["auto", "race:40min"])
def test_ddp_takes_no_plan_that_is_still_to_be_found(plan: str) -> None:
    with pytest.raises(PlanError, match=rf"{plan} finds a plan while .*tightwire race train\.py"):
        ddp_hook(plan, transport=Single())


def test_a_trainers_hook_knows_by_how_much_fp16_scales_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    from tightwire.integrations import trainer as module

    made: dict[str, Any] = {}

    def hook(plan: object, **options: Any) -> object:
        made.update(options)
        return SimpleNamespace(register=lambda wrapped: None)

    monkeypatch.setattr(module, "ddp_hook", hook)
    monkeypatch.setattr(module, "init", lambda: None)
    scaler = object()
    trainer: Any = SimpleNamespace(
        accelerator=SimpleNamespace(scaler=scaler),
        model_wrapped=DistributedDataParallel.__new__(DistributedDataParallel),
    )
    callback = module.TightwireCallback(trainer, "bsp/allreduce/topk:0.01+ef")
    callback.on_train_begin(SimpleNamespace(world_size=2), SimpleNamespace(global_step=0), None)
    assert made["scaler"] is scaler


def test_a_part_that_was_cut_short_is_named(tmp_path: Path) -> None:
    write({"version": 1, "workers": 2, "memory": torch.ones(100)}, tmp_path, rank=0, workers=2)
    path = path_of(tmp_path, 0)
    for content in (path.read_bytes()[:300], b"", b"not a checkpoint"):
        path.write_bytes(content)
        with pytest.raises(FileError, match=r"tightwire_0\.pt cannot be read as a rank's part"):
            read(tmp_path, rank=0, workers=2)
    torch.save([1, 2], path)
    with pytest.raises(FileError, match="something else stands there"):
        read(tmp_path, rank=0, workers=2)


def test_a_part_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write({"workers": 1}, tmp_path, rank=0, workers=1)

    def full(content: object, path: Path) -> None:
        path.write_bytes(b"half of i")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(FileError, match="no space left"):
        write({"workers": 2}, tmp_path, rank=0, workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["tightwire_0.pt"]
    assert torch.load(path_of(tmp_path, 0)) == {"workers": 1}


def test_two_prepared_models_have_parts_of_their_own(tmp_path: Path) -> None:
    """As of a GAN: the second's parts must not take the place of the first's."""
    plan = "bsp/allreduce/topk:0.1+ef"

    def train(transport: Transport) -> list[int]:
        with job(transport, plan) as one, job(transport, plan) as other:
            for made, steps in ((one, 3), (other, 5)):
                for step in range(steps):
                    made.step(step)
            _OwnParts(one.run, other.run).save(None, None, str(tmp_path))
        with job(transport, plan) as one, job(transport, plan) as other:
            parts = _OwnParts(one.run, other.run)
            parts.remember(None, str(tmp_path))
            parts.load_state_dict({})
            return [one.run.step, other.run.step]

    assert run_threads(2, train, deadline_s=20) == [[3, 5]] * 2


class FakeAccelerator:
    """Keeps what is registered, as the real one does, for good."""

    def __init__(self) -> None:
        self.saves, self.kept = list[Any](), list[Any]()

    def register_save_state_pre_hook(self, hook: Any) -> None:
        self.saves.append(hook)

    def register_load_state_pre_hook(self, hook: Any) -> None:
        pass

    def register_for_checkpointing(self, member: Any) -> None:
        self.kept.append(member)


def test_an_accelerator_that_prepares_again_saves_what_is_open(tmp_path: Path) -> None:
    """As in cross-validation, or after an attempt that was too large: the run of before is over."""
    accelerator = FakeAccelerator()
    for _ in range(3):
        with job(Single(), "bsp") as j:
            _parts_of(accelerator).add(j.run)
            for hook in accelerator.saves:
                hook(None, None, str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["tightwire_0.pt"]
    assert len(accelerator.kept) == 1


class TakesOne(DistributedDataParallel):
    """Has a hook registered once, as the real one."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.module = nn.Linear(2, 2)
        self.hooks = list[Any]()

    def register_comm_hook(self, state: object, hook: Any) -> None:
        if self.hooks:
            raise RuntimeError("register_comm_hook or register_builtin_comm_hook can only be called once.")
        self.hooks.append((state, hook))


def trained_twice(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, TakesOne]:
    pytest.importorskip("transformers")
    from tightwire.integrations import trainer as module

    monkeypatch.setattr(module, "ddp_hook", lambda plan, **more: ddp_hook(plan, transport=Single(), **more))
    monkeypatch.setattr(module, "init", lambda: None)
    ddp = TakesOne()
    trainer: Any = SimpleNamespace(accelerator=SimpleNamespace(scaler=None), model_wrapped=ddp)
    return module.TightwireCallback(trainer, "bsp/allreduce/topk:0.01+ef"), ddp


def test_a_trainer_may_train_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps its DDP, which takes one hook for good; what the mean is owed stays owed."""
    callback, ddp = trained_twice(monkeypatch)
    args, state = SimpleNamespace(world_size=2), SimpleNamespace(global_step=0)
    callback.on_train_begin(args, state, None)
    first = callback.hook
    memory = {"weight": {"ef": torch.ones(4)}}
    first.load_state_dict({"version": 1, "rank": 0, "workers": 1, "rounds": 7, "memory": memory})
    callback.on_train_end(args, state, None)
    callback.on_train_begin(args, state, None)
    again = callback.hook
    assert again is not first
    assert (again.rounds, again.state_dict()["memory"]["weight"]["ef"].tolist()) == (7, [1.0] * 4)
    ((given, hook),) = ddp.hooks
    called = list[object]()
    monkeypatch.setattr(type(again), "run", lambda self, bucket: called.append(self))
    hook(given, None)
    assert called == [again]
    callback.on_train_end(args, state, None)


def test_a_trainer_resumes_from_a_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    callback, _ = trained_twice(monkeypatch)
    state = {"version": 1, "rank": 0, "workers": 1, "rounds": 7, "memory": {}}
    write(state, tmp_path, rank=0, workers=1)
    callback.resumes_from = tmp_path  # which Trainer takes as well as a text
    args = SimpleNamespace(world_size=2, process_index=0, output_dir="elsewhere", resume_from_checkpoint=None)
    callback.on_train_begin(args, SimpleNamespace(global_step=3), None)
    assert callback.hook.rounds == 7
    callback.on_train_end(args, None, None)
