"""The user's optimizers seen as one, and what a step of theirs is: the one place that listens to `step()`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import LBFGS, Optimizer
from torch.utils.hooks import RemovableHandle

from tightwire.errors import AttachError
from tightwire.runtime.options import OptionsDigest, options

Closure = Callable[[], Any]
Options = Mapping[str, Any]  # of a group, but for its parameters


class StepListener(Protocol):
    """Is told of steps, each once, however the user makes them."""

    def before_step(self) -> None:
        """Called before the first optimizer of a step changes anything; gradients are those it will use."""

    def more_gradients(self) -> None:
        """Called when gradients were computed anew within the same step: for the next optimizer, or by a closure."""

    def after_step(self) -> None:
        """Called when all optimizers have stepped."""


class Optimizers:
    """The optimizers of one model.

    A step is over when every optimizer has stepped once; one that steps again before the others have begins the next.
    An optimizer whose `step` calls its parent's, or another optimizer's, makes one step: the outermost call counts.

    `step(closure)`: the optimizers of `torch.optim` call the closure once, first thing, so it is called for them, and
    they are given its loss: the step is then made as after `backward()`. LBFGS and optimizers that are not PyTorch's
    may call it when and as often as they like, and get one that tells the listener of each evaluation.

    Attributes:
        members: in the order given.
    """

    def __init__(
        self,
        members: Sequence[Optimizer],
        stands_for: Mapping[Parameter, Parameter] | None = None,
        shard_of: Callable[[Any], Any] | None = None,
    ) -> None:
        """Takes the optimizers.

        Args:
            members: of one model.
            stands_for: by a parameter that is kept in step, what the optimizers hold in its place: the DTensor of which
                it is this rank's shard.
            shard_of: returns this rank's shard of what they remember of those.
        """
        self.members = tuple(members)
        self._held, self._shard_of = dict(stands_for or {}), shard_of
        self._shown = {held: shown for shown, held in self._held.items()}
        self._listener: StepListener | None = None
        self._handles: list[RemovableHandle] = []
        self._stepped: set[int] = set()
        self._calls: list[FrameType] = []  # the frame of the outermost call of `step` under way, if any
        self._begun = False
        self._known: dict[Parameter, tuple[int, int]] = {}
        self._silent = False
        self._digest = OptionsDigest()

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all optimizers."""
        return [group for member in self.members for group in member.param_groups]

    @property
    def skip_by_themselves(self) -> bool:
        """Whether each, in the step that it makes now, drops what is not finite on its device, as a scaler asked it to.

        A `GradScaler` hands optimizers that can (fused ones of `torch.optim`) a flag on the device for the time of the
        step, and the host waits for nothing.
        """
        return all("found_inf" in vars(member) for member in self.members)

    def parameters(self) -> Iterator[Parameter]:
        """Yields what the optimizers update, in the order of groups."""
        for group in self.param_groups:
            yield from (self._shown.get(held, held) for held in group["params"])

    def state_of(self, parameter: Parameter) -> dict[str, Any]:
        """Returns what its optimizer remembers of a parameter; shares memory, and empty where it has none."""
        held = self._held.get(parameter, parameter)
        for member in self.members:
            if held in member.state:
                kept: dict[str, Any] = member.state[held]
                shard_of = self._shard_of
                return kept if shard_of is None else {key: shard_of(value) for key, value in kept.items()}
        return {}

    def remember(self, parameter: Parameter, kept: Mapping[str, Any]) -> None:
        """Replaces what its optimizer remembers of a parameter, on the devices where it was."""
        for member in self.members:
            if any(parameter is p for group in member.param_groups for p in group["params"]):
                before = member.state.pop(parameter, {})
                if kept:
                    member.state[parameter] = {k: _placed(v, before.get(k)) for k, v in kept.items()}

    def forget(self, parameter: Parameter) -> None:
        """Drops what its optimizer remembers of a parameter."""
        for member in self.members:
            member.state.pop(self._held.get(parameter, parameter), None)

    def hyperparameters(self) -> dict[str, str]:
        """Returns every option of every group that must be equal on all ranks, by what it is called in errors."""
        several = len(self.members) > 1
        found: dict[str, str] = {}
        for number, member in enumerate(self.members):
            whose = f"optimizer {number} ({type(member).__name__})" if several else "optimizer"
            for position, group in enumerate(member.param_groups):
                where = f"{whose}, group {position}, " if len(member.param_groups) > 1 else f"{whose}, "
                found |= {f"{where}{key}": text for key, text in options(group)}
        return found

    def digest(self) -> int:
        """Returns 24 bits that differ where hyper-parameters do; cheap where nothing changed since the last call."""
        return self._digest.of(self.param_groups)

    def listen(self, listener: StepListener) -> None:
        """Tells `listener` of every step from now on; see `close`."""
        self._listener = listener
        for number, member in enumerate(self.members):
            before = _Hook(self, number, "_before")
            after = _Hook(self, number, "_after")
            self._handles.append(member.register_step_pre_hook(before))
            self._handles.append(member.register_step_post_hook(after))

    def close(self) -> None:
        """Listens no longer."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._listener = None

    def end_step(self) -> None:
        """Takes a step as over, though some optimizers have not made theirs."""
        if self._stepped and self._listener is not None:
            self._end()

    def step_silently(self) -> None:
        """Makes a step of all optimizers that nobody is told of: it belongs to a step that was counted before."""
        with self._unheard():
            for member in self.members:
                unhooked(type(member).step)(member)

    @contextlib.contextmanager
    def under(self, options: Sequence[Options]) -> Iterator[None]:
        """Inside, groups have options of another moment; none: their own."""
        changed = list(zip(self.param_groups, options, strict=False))
        present = [dict(group) for group, _ in changed]
        for group, other in changed:
            group.update(other)
        try:
            yield
        finally:
            for (group, _), own in zip(changed, present, strict=True):
                group.update(own)

    @contextlib.contextmanager
    def _unheard(self) -> Iterator[None]:
        before, self._silent = self._silent, True
        try:
            yield
        finally:
            self._silent = before

    def _before(self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Hears that an optimizer is about to step; may return other arguments for it."""
        if self._silent or self._listener is None or self._is_nested():
            return None
        self._calls = [_caller()]
        member, closure = self.members[number], _closure_of(args, kwargs)
        if number in self._stepped:
            self._end()
        if closure is None:
            self._begin(number)
            return None
        self._begun = False

        def evaluate() -> Any:
            loss = closure()
            if self._begun:
                self._tell_more()
            else:
                self._begun = True
                self._begin(number)
            return loss

        if not evaluates_once(member):
            return _with_closure(args, kwargs, evaluate)
        with torch.enable_grad():
            loss = evaluate()
        return _with_closure(args, kwargs, lambda: loss)

    def _after(self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._silent or self._listener is None or not self._calls or self._calls[0] is not _caller():
            return
        self._calls = []
        if _closure_of(args, kwargs) is not None and not self._begun:
            raise AttachError(
                f"{type(self.members[number]).__name__} made a step and did not call the closure that it was given, so "
                "its gradients were not agreed on; call step() without a closure, after backward()."
            )
        self._stepped.add(number)
        if len(self._stepped) == len(self.members):
            self._end()

    def _begin(self, number: int) -> None:
        assert self._listener is not None
        if not self._stepped:
            self._listener.before_step()
            self._remember()
        elif any(
            self._known.get(p) != _mark(p) for g in self.members[number].param_groups for p in g["params"]
        ):
            self._tell_more()

    def _tell_more(self) -> None:
        assert self._listener is not None
        self._listener.more_gradients()
        self._remember()

    def _remember(self) -> None:
        """Notes the gradients that all optimizers are to step with, so that new ones are noticed."""
        if len(self.members) > 1:
            self._known = {p: _mark(p) for p in self.parameters()}

    def _end(self) -> None:
        assert self._listener is not None
        self._stepped.clear()
        self._known.clear()
        self._listener.after_step()

    def _is_nested(self) -> bool:
        """Whether this call of `step` is within another that is still under way, and did not raise."""
        frame: FrameType | None = _caller()
        while frame is not None and self._calls:
            if frame is self._calls[0]:
                return True
            frame = frame.f_back
        return False


class _Hook:
    """A step hook of an optimizer; one that is copied or saved along with it does nothing."""

    def __init__(self, optimizers: Optimizers | None, number: int, method: str) -> None:
        self._optimizers, self._number, self._method = optimizers, number, method

    def __call__(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._optimizers is None or self._optimizers.members[self._number] is not optimizer:
            return None
        return getattr(self._optimizers, self._method)(self._number, args, kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Hook, (None, 0, "")

    def __deepcopy__(self, memo: object) -> _Hook:
        return _Hook(None, 0, "")


def evaluates_once(optimizer: Optimizer) -> bool:
    """Whether `step` calls its closure once, before anything else, as the optimizers of PyTorch do but LBFGS."""
    return type(optimizer).__module__.startswith("torch.optim") and not isinstance(optimizer, LBFGS)


def unhooked(step: Callable[..., Any]) -> Callable[..., Any]:
    """Returns an optimizer's step without its hooks, which are called once per step of the user's."""
    return getattr(step, "__wrapped__", step) if getattr(step, "hooked", False) else step


def plain_optimizer(optimizer: Optimizer) -> Optimizer:
    """Returns the optimizer itself, out of the wrapper that Accelerate and its kin put around it.

    Raises:
        AttachError: something that makes no steps.
    """
    if isinstance(optimizer, Optimizer) and hasattr(optimizer, "_optimizer_step_pre_hooks"):
        return optimizer
    for inner in ("optimizer", "_optimizer"):
        if isinstance(wrapped := getattr(optimizer, "__dict__", {}).get(inner), Optimizer):
            return plain_optimizer(wrapped)
    raise AttachError(
        f"{type(optimizer).__name__} is no torch.optim.Optimizer and wraps none; attach what makes the steps."
    )


def _placed(value: Any, before: Any) -> Any:
    return value.to(before.device) if isinstance(value, Tensor) and isinstance(before, Tensor) else value


def _caller() -> FrameType:
    """Returns the frame of torch's wrapper around `step`, which calls `_Hook`, which called our caller."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__") == __name__:
        frame = frame.f_back
    assert frame is not None
    return frame


def _mark(parameter: Parameter) -> tuple[int, int]:
    gradient = parameter.grad
    return (0, 0) if gradient is None else (id(gradient), gradient._version)


def _closure_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Closure | None:
    """Returns the closure among the arguments of `step`, of which the first is the optimizer."""
    closure = args[1] if len(args) > 1 else kwargs.get("closure")
    return closure if callable(closure) else None


def _with_closure(
    args: tuple[Any, ...], kwargs: dict[str, Any], closure: Closure
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if len(args) > 1:
        return (args[0], closure, *args[2:]), kwargs
    return args, {**kwargs, "closure": closure}
