"""Tightwire inside the Hugging Face Trainer: a compressed hook for the DDP that it makes, with state that resumes."""

from __future__ import annotations

import functools
import os
import pathlib
import warnings
from collections.abc import Callable
from typing import Any, final

from torch import Tensor, nn
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from tightwire.errors import AttachError, PeerError
from tightwire.integrations._extras import needed
from tightwire.integrations._parts import read, write
from tightwire.integrations.ddp import DDPHook, ddp_hook, plan_for_ddp
from tightwire.plan import Plan
from tightwire.transport import current, init

with needed("transformers", extra="transformers"):
    from transformers import Trainer, TrainerCallback


def compress(trainer: Trainer, plan: Plan | str, *, seed: int = 0) -> TightwireCallback:
    """Has a Trainer average gradients as `plan` says, from `trainer.train()` on.

        trainer = Trainer(model, arguments, train_dataset=data)
        compress(trainer, "bsp/allreduce/int8+ef")
        trainer.train()

    The Trainer goes on scaling token-weighted losses by the number of workers, so the mean stays a plain mean.
    Checkpoints hold each rank's leftovers in `tightwire_RANK.pt`, and `resume_from_checkpoint` takes them up, also on
    another number of workers.

    Args:
        trainer: not training yet.
        plan: of sync `bsp`; its schedule is left out, for DDP cuts and orders buckets itself.
        seed: of stochastic codecs, the same on every rank.

    Raises:
        PlanError: a plan that cannot work, or not under DDP.
    """
    callback = TightwireCallback(trainer, plan, seed=seed)
    trainer.add_callback(callback)
    train = trainer.train

    @functools.wraps(train)
    def train_from(resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        callback.resumes_from = resume_from_checkpoint  # callbacks are not told
        try:
            return train(resume_from_checkpoint, *args, **kwargs)
        except BaseException as error:
            failure = callback.hook.failure if callback.hook is not None else None
            if isinstance(failure, PeerError):
                raise failure from error  # DDP tells only its text
            if callback.hook is not None and not isinstance(error, PeerError):
                current().fail(error)
            raise

    trainer.train = train_from
    return callback


class TightwireCallback(TrainerCallback):
    """Registers the hook when training begins, and keeps its state with the Trainer's checkpoints.

    Attributes:
        hook: once training has begun; None in a world of one, where nothing is averaged.
        resumes_from: what `trainer.train` was asked to resume from.
    """

    def __init__(self, trainer: Trainer, plan: Plan | str, *, seed: int = 0) -> None:
        self._trainer, self._seed = trainer, seed
        self._plan = plan_for_ddp(plan)
        self.hook: DDPHook | None = None
        self.resumes_from: str | os.PathLike[str] | bool | None = None
        self._door: _Door | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Registers the hook with the Trainer's DDP, and takes up what a checkpoint remembers."""
        if args.world_size == 1:
            return
        wrapped = self._trainer.model_wrapped
        if not isinstance(wrapped, DistributedDataParallel):
            raise AttachError(
                f"the Trainer has wrapped the model in {type(wrapped).__name__}, where a hook for DDP has no place; "
                "train with plain data parallelism, or use tw.fsdp_hook."
            )
        init()
        scaler = getattr(self._trainer.accelerator, "scaler", None)  # under fp16
        before, self.hook = self.hook, ddp_hook(self._plan, scaler=scaler, seed=self._seed)
        if before is not None:
            before.close()
        if self._door is None or self._door.ddp is not wrapped:
            self._door, before = _Door(wrapped), None  # of another model
        if state.global_step:
            self._resume(args, state)
        elif before is not None:
            self.hook.load_state_dict(before.state_dict())
        self.hook.register(self._door)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Saves this rank's part beside the Trainer's own files."""
        if self.hook is not None:
            folder = pathlib.Path(args.output_dir) / f"checkpoint-{state.global_step}"
            folder.mkdir(parents=True, exist_ok=True)
            write(self.hook.state_dict(), folder, rank=args.process_index, workers=args.world_size)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ends the hook's thread."""
        if self.hook is not None:
            self.hook.close()

    def _resume(self, args: Any, state: Any) -> None:
        assert self.hook is not None
        given = self.resumes_from or args.resume_from_checkpoint
        folder = pathlib.Path(given) if isinstance(given, str | os.PathLike) else None
        places = [folder, pathlib.Path(args.output_dir) / f"checkpoint-{state.global_step}"]
        for place in filter(None, places):
            if (parts := read(place, rank=args.process_index, workers=args.world_size)) is not None:
                self.hook.load_state_dict(parts)
                return
        warnings.warn(
            f"training resumes at step {state.global_step} from a checkpoint without tightwire_{args.process_index}.pt "
            f"in {' or '.join(str(place) for place in places if place)}: leftovers begin at zero.",
            stacklevel=2,
        )


@final
class _Door:
    """A DDP, which takes one hook for good: those that come later, as its Trainer trains again, stand in its place.

    Attributes:
        ddp: the one that it stands for.
    """

    def __init__(self, ddp: DistributedDataParallel) -> None:
        self.ddp = ddp
        self._run: Callable[[Any], Future[Tensor]] | None = None

    @property
    def module(self) -> nn.Module:
        """What it wraps."""
        module: nn.Module = self.ddp.module
        return module

    def register_comm_hook(self, state: object, hook: Callable[..., Future[Tensor]]) -> None:
        """Has `hook` called with `state` for every bucket, from now on."""
        is_first, self._run = self._run is None, functools.partial(hook, state)
        if is_first:
            self.ddp.register_comm_hook(self, lambda door, bucket: door.run(bucket))

    def run(self, bucket: Any) -> Future[Tensor]:
        """Hands a bucket to the hook that came last."""
        assert self._run is not None
        return self._run(bucket)
