"""Tightwire as a Lightning strategy: `Trainer(strategy="tightwire")`, or `TightwireStrategy(plan=...)`.

Importing this module registers the strategy's name.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any, final

from tightwire._attach import attach
from tightwire.integrations._extras import needed
from tightwire.runtime import Run
from tightwire.transport import init

with needed("lightning", extra="lightning"):
    from lightning.pytorch.plugins.environments import TorchElasticEnvironment
    from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
    from lightning.pytorch.trainer.states import TrainerFn

KEY = "tightwire"


@final
class TightwireStrategy(DDPStrategy):
    """Trains a LightningModule in step with its replicas as a plan says, in place of DDP.

    Lightning's own loop, closures, accumulation, clipping, precision and checkpoints stay as they are. A checkpoint
    holds every rank's part of the run (`run.state_dict(gather=True)`), and any number of workers loads it. Validation
    under local methods is of the mean model. With manual optimisation of several optimizers a step is over when all
    have stepped.

    Attributes:
        run: while a fit goes on; None before and after.
    """

    strategy_name = KEY

    def __init__(
        self, plan: Any = "auto", *, attach_options: Mapping[str, Any] | None = None, **options: Any
    ) -> None:
        """Makes the strategy; nothing starts yet.

        Args:
            plan: see `tightwire.attach`.
            attach_options: its other options.
            options: of Lightning's `DDPStrategy`, except those for DDP itself.
        """
        if {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= set(os.environ):
            # Lightning counts ranks itself unless torchrun is the launcher; others set the same variables.
            options.setdefault("cluster_environment", TorchElasticEnvironment())
        super().__init__(**options)
        self.run: Run | None = None
        self._plan, self._attach_options = plan, dict(attach_options or {})
        self._evaluating = contextlib.ExitStack()
        self._parts: dict[str, Any] = {}

    def configure_ddp(self) -> None:
        """Leaves the module unwrapped."""

    def setup(self, trainer: Any) -> None:
        """Places the module and its optimizers, and attaches them when a fit begins."""
        super().setup(trainer)
        if trainer.state.fn != TrainerFn.FITTING:
            return
        scaler = vars(self.precision_plugin).get("scaler")
        init()
        self.run = attach(
            self.lightning_module, list(self.optimizers), self._plan, scaler=scaler, **self._attach_options
        )

    @contextlib.contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Accumulates locally; Lightning's loop calls it between steps."""
        with self.run.accumulate() if self.run is not None else contextlib.nullcontext():
            yield

    def on_validation_start(self) -> None:
        """Lends the validation the model to be evaluated."""
        super().on_validation_start()
        if self.run is not None:
            self._evaluating.enter_context(self.run.evaluating())

    def on_validation_end(self) -> None:
        """Takes the training's parameters back."""
        self._evaluating.close()
        super().on_validation_end()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Adds every rank's part of the run to the checkpoint, which rank 0 writes."""
        if self.run is not None:
            self._parts = self.run.state_dict(gather=True)
        if self._parts:
            checkpoint[KEY] = self._parts
        super().save_checkpoint(checkpoint, filepath, storage_options)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Takes up the optimizers' state, and then the run's."""
        super().load_optimizer_state_dict(checkpoint)
        if self.run is not None and KEY in checkpoint:
            self.run.load_state_dict(checkpoint[KEY])

    def on_train_end(self) -> None:
        """Completes what is under way: replicas are equal afterwards."""
        super().on_train_end()
        if self.run is not None:
            self.run.finish()

    def on_exception(self, exception: BaseException) -> None:
        """Tells the other ranks why this one ends."""
        super().on_exception(exception)
        self._evaluating.close()
        if self.run is not None:
            self.run.__exit__(type(exception), exception, exception.__traceback__)
            self.run = None

    def teardown(self) -> None:
        """Takes the hooks out."""
        if self.run is not None:
            self._parts = self.run.state_dict(gather=True)  # for a checkpoint that is saved after the fit
            self.run.close()
            self.run = None
        super().teardown()


StrategyRegistry.register(
    KEY, TightwireStrategy, description="Tightwire's plans in place of DDP", override=True
)
