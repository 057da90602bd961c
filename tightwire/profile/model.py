"""Measures a model's step: forward, backward, when each gradient is ready, and the rest."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from tightwire.devices import device_named
from tightwire.errors import AttachError
from tightwire.profile.values import MAX_CONTENTION, ParameterProfile, Profile


@dataclass
class Marks:
    """When things happened in one step, in seconds of `time.perf_counter`; and the thread's processor time."""

    begin_s: float
    backward_s: float | None = None
    backward_end_s: float = 0.0
    end_s: float = 0.0
    processor_s: float = 0.0
    ready_s: dict[str, float] = field(default_factory=dict)


@final
class Profiler:
    """Watches a training loop for as long as the `with` block lasts; changes no result.

    A step lasts from one optimizer step's end to the next one's. Where several backward passes share a step, the
    last one counts as its backward and all before it as forward, since only the last one's gradients travel.

        with Profiler(model, optimizer) as profiler:
            for _ in range(7):
                train_step()
        profile = profiler.profile()

    Args:
        model: whose parameters train.
        optimizer: whose `step()` ends a step.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self._model = model
        self._optimizer = optimizer
        self._parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._at = next((p.device for p in self._parameters.values()), torch.device("cpu"))
        self._device = device_named(self._at)
        self._handles: list[RemovableHandle] = []
        self._marks = Marks(begin_s=0.0)
        self._steps: list[Marks] = []
        self._in_backward = False

    def __enter__(self) -> Self:
        self._handles = [
            self._model.register_forward_hook(self._on_output),
            self._optimizer.register_step_post_hook(self._on_step),
        ]
        for name, parameter in self._parameters.items():
            hook = parameter.register_post_accumulate_grad_hook(lambda _, name=name: self._on_gradient(name))
            self._handles.append(hook)
        self._marks = Marks(begin_s=self._now_s(), processor_s=-time.thread_time())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def profile(self, *, warm_up: int = 2) -> Profile:
        """Returns the medians over the steps seen, without the first `warm_up`.

        Raises:
            AttachError: no step with a backward pass was seen after the warm-up.
        """
        steps = self._steps[warm_up:]
        if not steps:
            raise AttachError(
                f"{len(self._steps)} training steps were seen and the first {warm_up} are warm-up; "
                "take more, each with a backward pass and optimizer.step()."
            )
        backward_s = statistics.median(m.backward_end_s - (m.backward_s or 0.0) for m in steps)
        return Profile(
            forward_s=statistics.median((m.backward_s or 0.0) - m.begin_s for m in steps),
            backward_s=backward_s,
            optimizer_s=statistics.median(m.end_s - m.backward_end_s for m in steps),
            parameters=tuple(self._in_order(steps, backward_s)),
            noise=_spread([m.end_s - m.begin_s for m in steps]),
            device=self._device.kind,
            contention=(
                min(MAX_CONTENTION, max(1.0, statistics.median(map(_contention, steps))))
                if self._device.is_host
                else 1.0
            ),
        )

    def _in_order(self, steps: list[Marks], backward_s: float) -> Iterator[ParameterProfile]:
        ready_s = {
            name: min(
                backward_s,
                statistics.median(
                    m.ready_s.get(name, m.backward_end_s) - (m.backward_s or 0.0) for m in steps
                ),
            )
            for name in self._parameters
        }
        last_first = list(ready_s)[::-1]  # the usual order of backward, for those that are ready together
        for name in sorted(last_first, key=ready_s.__getitem__):
            gradient = self._parameters[name]
            yield ParameterProfile(
                name=name,
                numel=gradient.numel(),
                itemsize=gradient.itemsize,
                ready_s=ready_s[name],
                shape=tuple(gradient.shape),
            )

    def _on_output(self, module: nn.Module, inputs: Any, output: Any) -> None:
        for tensor in _tensors(output):
            if tensor.requires_grad:
                tensor.register_hook(self._on_output_gradient)

    def _on_output_gradient(self, gradient: Tensor) -> None:
        self._begin_backward()

    def _on_gradient(self, name: str) -> None:
        self._begin_backward()
        self._marks.ready_s[name] = self._now_s()

    def _begin_backward(self) -> None:
        if self._in_backward:
            return
        self._in_backward = True
        self._marks.backward_s = self._now_s()
        self._marks.ready_s = {}
        # The engine's own end-of-backward callback, which DDP and FSDP rely on as well.
        torch.autograd.Variable._execution_engine.queue_callback(self._end_backward)

    def _end_backward(self) -> None:
        self._in_backward = False
        self._marks.backward_end_s = self._now_s()

    def _on_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._marks.end_s = self._now_s()
        self._marks.processor_s += time.thread_time()
        if self._marks.backward_s is not None and not self._in_backward:
            self._steps.append(self._marks)
        self._in_backward = False  # a pass that raised has no end
        self._marks = Marks(begin_s=self._marks.end_s, processor_s=-time.thread_time())

    def _now_s(self) -> float:
        self._device.drain(self._at)  # kernels run behind the hooks that ask
        return time.perf_counter()


def measure(
    model: nn.Module, optimizer: Optimizer, step: Callable[[], object], *, steps: int = 5, warm_up: int = 2
) -> Profile:
    """Runs `warm_up + steps` real training steps and returns their profile. The model trains on.

    Args:
        model: whose parameters train.
        optimizer: whose `step()` ends a step.
        step: one training step: forward, backward, optimizer.
        steps: how many to measure.
        warm_up: how many to run before.

    Raises:
        AttachError: `step` made no backward pass, or never called `optimizer.step()`.
    """
    with Profiler(model, optimizer) as profiler:
        for _ in range(warm_up + steps):
            step()
    return profiler.profile(warm_up=warm_up)


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from _tensors(value)


def _contention(marks: Marks) -> float:
    """Returns how many times longer the step took than its thread was running."""
    return (marks.end_s - marks.begin_s) / max(marks.processor_s, 1e-9)


def _spread(seconds: list[float]) -> float:
    """Returns the standard deviation over the median, by the median absolute deviation: outliers are no noise."""
    median = statistics.median(seconds)
    return 1.4826 * statistics.median(abs(s - median) for s in seconds) / median
