"""Notices when the model or the optimizer is no longer the one that was attached."""

from __future__ import annotations

import types
import weakref
from collections.abc import Mapping
from operator import is_

import torch
from torch import nn
from torch.nn import Parameter
from torch.utils.weak import WeakTensorKeyDictionary

from tightwire.errors import AttachError
from tightwire.runtime.step import Optimizers

# Who guards a parameter at present, so that attaching twice is noticed however the model is wrapped. Not an
# attribute of the parameter: an attached model can be copied and saved.
_guards = WeakTensorKeyDictionary()

# What averages gradients itself, by name: FSDP2 makes classes of its own.
_WRAPPING_STATES = {"_ReplicateState": "replicate()", "FSDPState": "fully_shard()"}
_WRAPPERS = {"DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule"}


class Guard:
    """Remembers the modules and parameters of a model; comparing costs well under a microsecond per module."""

    def __init__(self, model: nn.Module, optimizers: Optimizers) -> None:
        """Guards; see `require_attachable`."""
        require_attachable(model, optimizers)
        self._model = model
        self._modules = [(m, dict(m._modules), dict(m._parameters)) for m in model.modules()]
        self._parameters = list(model.parameters())
        self._kinds = [_kind(p) for p in self._parameters]
        self._frozen = [p for p in self._parameters if not p.requires_grad]
        self._tables: list[Mapping[str, object]] = [
            table for m, _, _ in self._modules for table in (m._modules, m._parameters)
        ]
        self._present, self._marks = self._present_now(), self._marks_now()
        for parameter in model.parameters():
            _guards[parameter] = weakref.ref(self)

    def check(self) -> None:
        """Compares the model with the attached one.

        Raises:
            AttachError: names the module or the parameter that changed, or what thawed.
        """
        present = self._present_now()
        if (
            len(present) != len(self._present)
            or not all(map(is_, present, self._present))
            or self._marks_now() != self._marks
        ):
            self._compare()

    def _present_now(self) -> list[object]:
        """Returns all submodules and parameters, in one list; this and the next are asked in every step."""
        return [value for table in self._tables for value in table.values()]

    def _marks_now(self) -> list[object]:
        """Returns what must stay equal of parameters."""
        return [
            *[p.dtype for p in self._parameters],
            *[p.device for p in self._parameters],
            *[p.shape for p in self._parameters],
            *[p.requires_grad for p in self._frozen],
        ]

    def _compare(self) -> None:
        for module, children, parameters in self._modules:
            if _differ(module._modules, children) or _differ(module._parameters, parameters):
                raise AttachError(
                    f"the model changed after it was attached: {type(module).__name__} has other parameters or "
                    "submodules than before, as after load_state_dict(assign=True). Load without assign, or load first "
                    "and attach then; else close the run and attach the changed model."
                )
        # A new dtype or device takes autograd's hooks with it.
        for parameter, kind in zip(self._parameters, self._kinds, strict=True):
            if _kind(parameter) != kind:
                raise AttachError(
                    f"a parameter changed after it was attached: it is now {_kind(parameter)}, it was {kind}. Convert "
                    "and move a model before it is attached."
                )
        if thawed := [p for p in self._frozen if p.requires_grad]:
            raise AttachError(
                f"{len(thawed)} parameters that were frozen when the model was attached now require gradients, of "
                f"shapes {[tuple(p.shape) for p in thawed[:3]]}; they would not be averaged. Close the run and "
                "attach again."
            )

    def release(self) -> None:
        """Lets the model be attached again."""
        for parameter in self._model.parameters():
            if _guard_of(parameter) is self:
                del _guards[parameter]


def _guard_of(parameter: Parameter) -> Guard | None:
    guard: Guard | None = _guards.get(parameter, lambda: None)()
    return guard


def _kind(parameter: Parameter) -> tuple[torch.Size, torch.dtype, torch.device]:
    return parameter.shape, parameter.dtype, parameter.device


def _differ(now: Mapping[str, object], then: Mapping[str, object]) -> bool:
    return len(now) != len(then) or any(now.get(name) is not value for name, value in then.items())


def require_attachable(model: nn.Module, optimizers: Optimizers) -> None:
    """Makes sure that a model and its optimizers can be kept in step. Local, and changes nothing.

    Raises:
        AttachError: says what cannot be attached, by name, and what to do instead.
    """
    for module in model.modules():
        if other := _who_averages(module):
            raise AttachError(
                f"the model contains {other}, which averages gradients itself; attach the module inside it, and call "
                "that, not the wrapper; or stay with the wrapper and use tw.ddp_hook(plan)."
            )
    for name, parameter in model.named_parameters():
        _require_plain(name, parameter)
    parameters = list(model.parameters())
    if any(_guard_of(p) is not None for p in parameters):
        raise AttachError(
            "the model, or a part of it, is attached already; close that run first (`with attach(...) as run:`)."
        )
    for name, module in model.named_modules():
        is_sparse = isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse
        if is_sparse and any(p.requires_grad for p in module.parameters()):
            raise AttachError(
                f"{name or 'the model'} has sparse gradients (sparse=True), which cannot be averaged in a bucket; "
                "build it with sparse=False."
            )
    ours = {id(p) for p in parameters}
    strangers = sum(id(p) not in ours for p in optimizers.parameters())
    if strangers:
        raise AttachError(
            f"the optimizer updates {strangers} parameters that are not the model's; they would drift apart between "
            "workers. Attach a module that holds them all, or give them an optimizer of their own."
        )
    if not any(p.requires_grad for p in parameters):
        raise AttachError(
            "the model has no parameter that requires gradients; there is nothing to keep in step."
        )


def _who_averages(module: nn.Module) -> str | None:
    """Returns the name of what averages a module's gradients besides, if anything does."""
    for kind in type(module).__mro__:
        if kind.__name__ in _WRAPPERS:
            return kind.__name__
    for hook in module._forward_pre_hooks.values():
        owner = type(hook.__self__).__name__ if isinstance(hook, types.MethodType) else ""
        if owner in _WRAPPING_STATES:
            return _WRAPPING_STATES[owner]
    return None


def _require_plain(name: str, parameter: Parameter) -> None:
    """Makes sure that a parameter is a tensor of real numbers in memory of its own."""
    if nn.parameter.is_lazy(parameter):
        raise AttachError(
            f"parameter {name} has no shape yet (a lazy module); run the model once on a batch, and then attach it."
        )
    if any(kind.__name__ == "DTensor" for kind in type(parameter).__mro__ + type(parameter.data).__mro__):
        raise AttachError(
            f"parameter {name} is a DTensor, a part of which is on other ranks (FSDP2, tensor parallelism); attach "
            "models whose parameters are whole on every rank, and leave sharded ones to what sharded them."
        )
    if parameter.is_complex():
        raise AttachError(
            f"parameter {name} is complex ({parameter.dtype}); keep its real and imaginary parts as one real "
            "parameter, torch.view_as_real(w), and make it complex in forward with torch.view_as_complex."
        )
