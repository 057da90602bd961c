"""Profiles a training script as it is: runs it, finds its model and optimizer, stops it after a few steps."""

from __future__ import annotations

import contextlib
import os
import pathlib
import runpy
import socket
import sys
from collections.abc import Iterator, Sequence
from typing import Any, final
from unittest import mock

from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from tightwire.errors import AttachError
from tightwire.profile.model import Profiler
from tightwire.profile.values import Profile


class _Enough(BaseException):
    """Ends the script; no handler for ordinary errors catches it."""


@final
class _Watch:
    """Waits for the first optimizer step, then profiles the model that it trained."""

    def __init__(self, steps: int, warm_up: int) -> None:
        self._wanted = steps + warm_up
        self._warm_up = warm_up
        self._called: dict[int, nn.Module] = {}
        self._optimizer: Optimizer | None = None
        self._profiler: Profiler | None = None
        self._seen = 0
        self.profile: Profile | None = None

    def on_forward(self, module: nn.Module, inputs: Any) -> None:
        """Notes a module that runs."""
        if self._profiler is None:
            self._called.setdefault(id(module), module)

    def on_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Starts the profiler after the first step, and ends the script after the last."""
        if self._profiler is None:
            self._optimizer = optimizer
            self._profiler = Profiler(self._model_of(optimizer), optimizer).__enter__()
            return
        if optimizer is not self._optimizer:
            return
        self._seen += 1
        if self._seen > self._wanted:  # the profiler's own hook may run after this one
            self._profiler.__exit__(None, None, None)
            self.profile = self._profiler.profile(warm_up=self._warm_up)
            raise _Enough

    def _model_of(self, optimizer: Optimizer) -> nn.Module:
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}

        def num_trained(module: nn.Module) -> int:
            return sum(id(p) in trained for p in module.parameters())

        # The first of the best: outer modules run before what they contain.
        model = max(self._called.values(), key=num_trained, default=None)
        if model is None or num_trained(model) == 0:
            raise AttachError("the optimizer's step trained no module that had run; nothing can be profiled.")
        return model


def profile_script(
    path: pathlib.Path, arguments: Sequence[str] = (), *, steps: int = 5, warm_up: int = 2
) -> Profile:
    """Runs a training script until it has made enough steps, and returns the profile of what it trains.

    Args:
        path: the script; it runs as `__main__`, and ends where the last measured step ends.
        arguments: its command line.
        steps: how many to measure.
        warm_up: how many to pass over.

    Raises:
        AttachError: the script ended, or called sys.exit, before it had made as many steps.
    """
    watch = _Watch(steps, warm_up)
    handles = [
        register_module_forward_pre_hook(watch.on_forward),
        register_optimizer_step_post_hook(watch.on_step),
    ]
    how = "ended"
    try:
        with _as_main(path, arguments), contextlib.suppress(_Enough):
            runpy.run_path(str(path), run_name="__main__")
    except SystemExit as exit_:  # as by sys.exit(main()), or from its command line
        how = f"called sys.exit({exit_.code!r})" if exit_.code else how
    finally:
        for handle in handles:
            handle.remove()
    if watch.profile is None:
        raise AttachError(
            f"{path} {how} before it had made {steps + warm_up + 2} optimizer steps; train longer, or measure fewer."
        )
    return watch.profile


@contextlib.contextmanager
def _as_main(path: pathlib.Path, arguments: Sequence[str]) -> Iterator[None]:
    """Has a script believe that it was started alone: by its own command line, and by torchrun as a world of one."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    alone |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with (
        mock.patch.dict(os.environ, alone | os.environ),
        mock.patch.object(sys, "argv", [str(path), *arguments]),
        mock.patch.object(sys, "path", [str(path.parent.resolve()), *sys.path]),
    ):
        yield
