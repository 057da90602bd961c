"""Forward passes of the attached model: traced, counted, and looked at for somebody else who averages."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tightwire.errors import AttachError
from tightwire.runtime.trace import Tracer

# Of a pass's outputs, so many are watched for a gradient.
MOST_OUTPUTS = 16

STEP_NEVER_SEEN = (
    "the parameters change from pass to pass, and step() of the attached optimizer was never called, so that nothing "
    "that happens at steps is done: attach the optimizer that makes the steps (of SAM or Lookahead, the one inside)."
)


class ForwardWatch:
    """Follows a model's forward passes.

    A training pass whose outputs no backward pass reaches was skipped (`if not isfinite(loss): continue`). Ranks that
    skip alone pair unlike passes from then on, so the count travels with what they exchange anyway.

    Attributes:
        count: passes seen.
        skipped: training passes, so far, that no backward pass followed.
        saw_changes: before how many training passes parameters were found changed, though no step was seen.
        on_backward: called when a backward pass comes to the outputs of a training pass.
        pauses: whether passes do not count at present, as those of an evaluation.
    """

    def __init__(self, model: nn.Module, tracer: Tracer) -> None:
        self.on_backward: Callable[[], None] = _ignore
        self.pauses: Callable[[], bool] = bool
        self.skipped = 0
        self.saw_changes = self.count = 0
        self._model, self._is_step_seen, self._versions = model, False, -1
        self._tracer = tracer
        self._started_s: list[float] = []
        self._open = self._judged = (
            0  # passes that wait for a backward pass since they were judged last; how often
        )
        self._handles = [
            model.register_forward_pre_hook(_Hook(self, "_begin")),
            model.register_forward_hook(_Hook(self, "_end")),
        ]

    def hear_step(self) -> None:
        """Hears that the attached optimizer stepped."""
        self._is_step_seen = True

    def judge(self) -> int:
        """Returns how many passes were skipped, those that wait for a backward pass now included."""
        self.skipped += self._open
        self.forgive()
        return self.skipped

    def forgive(self) -> None:
        """Forgets the passes that wait for a backward pass: this worker said that it leaves it out."""
        self._open = 0
        self._judged += 1

    def close(self) -> None:
        """Takes the hooks out."""
        for handle in self._handles:
            handle.remove()

    def _begin(self, *_: Any) -> None:
        self._started_s.append(time.perf_counter())
        self.count += 1
        if DistributedDataParallel._active_ddp_module is not None:
            raise AttachError(
                "the attached model runs inside DistributedDataParallel, which averages gradients too. Call the "
                "attached module itself and not the wrapper around it (with Accelerate or Lightning, leave the model "
                "out of prepare() or setup()); or stay with the wrapper and use tw.ddp_hook(plan)."
            )

        if not self._is_step_seen and self._model.training and torch.is_grad_enabled():
            self._look_for_changes()

    def _look_for_changes(self) -> None:
        versions, before = sum(p._version for p in self._model.parameters()), self._versions
        self._versions = versions
        if before not in (-1, versions):
            self.saw_changes += 1
            if self.saw_changes == 2:
                warnings.warn(STEP_NEVER_SEEN, stacklevel=4)

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._started_s:
            self._tracer.record("compute", "forward", self._started_s.pop(), time.perf_counter())
        if not (module.training and torch.is_grad_enabled()) or self.pauses():
            return
        tensors = [t for t in _tensors(output) if t.requires_grad][:MOST_OUTPUTS]
        if tensors:
            self._open += 1
            reached = _Reached(self, self._judged)
            for tensor in tensors:
                tensor.register_hook(reached)

    def _reach(self, judged: int) -> None:
        """Counts a pass, seen when passes were judged so often, as one that a backward pass came to."""
        self._open -= judged == self._judged


class _Reached:
    """Hears when a backward pass comes to a tensor of one pass."""

    def __init__(self, watch: ForwardWatch, judged: int) -> None:
        self._watch, self._judged, self._is_reached = watch, judged, False

    def __call__(self, gradient: Tensor) -> None:
        if not self._is_reached:
            self._is_reached = True
            self._watch._reach(self._judged)
        self._watch.on_backward()


class _Hook:
    """A hook of the model; silent under compilation, and one that is copied or saved along does nothing."""

    def __init__(self, watch: ForwardWatch | None = None, method: str = "") -> None:
        self._watch, self._method = watch, method

    def __call__(self, *args: Any) -> None:
        if torch.compiler.is_compiling() or self._watch is None:
            return
        getattr(self._watch, self._method)(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Hook, ()

    def __deepcopy__(self, memo: object) -> _Hook:
        return _Hook()


def _ignore() -> None:
    pass


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, tuple | list):
        for value in output:
            yield from _tensors(value)
