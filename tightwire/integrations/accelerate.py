"""Tightwire behind Hugging Face Accelerate: `prepare` in place of `accelerator.prepare`."""

from __future__ import annotations

import contextlib
import logging
import pathlib
import weakref
from contextlib import AbstractContextManager
from typing import Any, final

from torch import nn
from torch.optim import Optimizer

from tightwire._attach import attach
from tightwire.errors import AttachError
from tightwire.integrations._parts import path_of, read, write
from tightwire.runtime import Run
from tightwire.transport import init

log = logging.getLogger("tightwire")


def prepare(
    accelerator: Any, model: nn.Module, optimizer: Optimizer, *others: Any, plan: Any = "auto", **options: Any
) -> tuple[Any, ...]:
    """Prepares a model and its optimizer to train as `plan` says, and everything else as Accelerate does.

        model, optimizer, loader, run = prepare(accelerator, model, optimizer, loader, plan="bsp/allreduce/int8+ef")

    The loop is unchanged: `accelerator.accumulate`, `backward`, `clip_grad_norm_`, `save_state` and `load_state` work,
    and the last two keep each rank's part of the run in `tightwire_RANK.pt`, until it is closed. Another number of
    workers takes up all parts; see `Run.load_state_dict`. Of several models, each prepared by a call of its own, the
    second's parts are in `tightwire2_RANK.pt`, and so on. The model is not wrapped in DistributedDataParallel, so it
    keeps its names; leave `unwrap_model` where it is.

    Args:
        accelerator: an `accelerate.Accelerator`, of one process or of several without FSDP, DeepSpeed or Megatron.
        model: not prepared yet.
        optimizer: of its parameters, not prepared yet.
        others: loaders, schedulers and more, prepared by Accelerate.
        plan: see `tightwire.attach`.
        options: the other options of `tightwire.attach`.

    Returns:
        The model, the optimizer, the others in their order, and the `Run`: use it as a context, or call its `finish`
        when training is over.

    Contract: every rank; blocks until all have arrived.

    Raises:
        AttachError: an accelerator that shards the model itself, or a model that is prepared already.
    """
    kind = accelerator.distributed_type.value
    if kind not in ("NO", "MULTI_CPU", "MULTI_GPU"):
        raise AttachError(
            f"Accelerate is set to {kind}, which keeps replicas in step itself; for FSDP2 use tw.fsdp_hook, else start "
            "with plain data parallelism (`accelerate config`: no DeepSpeed, FSDP or Megatron)."
        )
    if "_is_accelerate_prepared" in vars(model):
        raise AttachError(
            "the model is prepared by Accelerate already and may average gradients itself; pass it to "
            "tightwire.integrations.accelerate.prepare as it is, before accelerator.prepare."
        )
    init()
    model = accelerator.prepare_model(model, evaluation_mode=True)  # placed and cast, not wrapped in DDP
    prepared_optimizer, *prepared = accelerator.prepare(optimizer, *others)
    run = attach(model, prepared_optimizer, plan, scaler=accelerator.scaler, **options)
    vars(model)["no_sync"] = _NoSync(run)
    _parts_of(accelerator).add(run)
    return model, prepared_optimizer, *prepared, run


@final
class _NoSync:
    """What `accelerator.no_sync` and `accumulate` look for on a model; a copy of the model has it without a run."""

    def __init__(self, run: Run | None) -> None:
        self._run = weakref.ref(run) if run is not None else None

    def __call__(self) -> AbstractContextManager[None]:
        run = self._run() if self._run is not None else None
        return contextlib.nullcontext() if run is None else run.accumulate()

    def __deepcopy__(self, memo: object) -> _NoSync:
        return _NoSync(None)

    def __reduce__(self) -> tuple[type[_NoSync], tuple[None]]:
        return _NoSync, (None,)


@final
class _OwnParts:
    """Saves and loads this rank's part of each run; Accelerate loads what is registered last of all."""

    def __init__(self, *runs: Run) -> None:
        self._runs, self._folder = list(runs), pathlib.Path()

    def add(self, run: Run) -> None:
        """Takes in another run; those that are closed by now are no part of checkpoints any more."""
        self._runs = [*(other for other in self._runs if not other.is_closed), run]

    def save(self, models: object, weights: object, folder: str) -> None:
        """Writes this rank's files; called on every rank. Runs that are closed have no part: training is over."""
        for number, run in enumerate(self._runs):
            if run.is_closed:
                log.info(
                    "the run is closed: %s holds the model and the optimizer, to begin anew from.", folder
                )
                continue
            rank, workers = run.transport.rank, run.transport.size
            write(run.own_state(), folder, rank=rank, workers=workers, run=number)

    def remember(self, models: object, folder: str) -> None:
        """Takes note of where a checkpoint is loaded from."""
        self._folder = pathlib.Path(folder)

    def state_dict(self) -> dict[str, Any]:
        """Returns nothing: Accelerate would save rank 0's for all."""
        return {}

    def load_state_dict(self, state: object) -> None:
        """Goes on from the folder's parts, once models and optimizers are loaded."""
        for number, run in enumerate(self._runs):
            if run.is_closed:
                continue
            rank, workers = run.transport.rank, run.transport.size
            parts = read(self._folder, rank=rank, workers=workers, run=number)
            if parts is None:
                raise AttachError(
                    f"{self._folder} has no {path_of(self._folder, rank, number).name}: it was saved without Tightwire "
                    "or with fewer models. Load the model and the optimizer by themselves to begin a new run from them."
                )
            run.load_state_dict(parts)


# What an accelerator saves and loads, once for all that it prepares: it calls whatever was ever registered.
_registered: weakref.WeakKeyDictionary[Any, _OwnParts] = weakref.WeakKeyDictionary()


def _parts_of(accelerator: Any) -> _OwnParts:
    """Returns what saves and loads with an accelerator."""
    if (known := _registered.get(accelerator)) is not None:
        return known
    parts = _registered[accelerator] = _OwnParts()
    accelerator.register_save_state_pre_hook(parts.save)
    accelerator.register_load_state_pre_hook(parts.remember)
    accelerator.register_for_checkpointing(parts)
    return parts
