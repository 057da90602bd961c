"""Tensors whose values are still on their way: whoever reads one through PyTorch waits for it first.

A tensor that is held has another class for a while. PyTorch hands every call on it, from Python and wherever the
tensor stands in the arguments, to that class, which settles the tensor (it is then of its own class again) and
makes the call.

    who reads                                             what happens
    modules, functional calls, operators, `p.data`        settles first
    `state_dict()`, `deepcopy`, pickling, `torch.save`    settles first
    NumPy, DLPack, `data_ptr()`                           settles first
    `optimizer.state_dict()`, `load_state_dict()`         a hook settles all first
    `optimizer.state`                                     settles all first (`Piecemeal.hold_state`)
    `torch.compile`, `torch.jit`                          refused: compiled code hides its reads (`visible`)
    metadata: shape, dtype, device, `grad`, …             not settled: nothing here reads or writes the value
    C++ that was given the tensor or its memory before    not seen: sees the value of before the step

Each line is a test.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

_settlers: dict[int, Callable[[], None]] = {}

# What may be asked of a tensor whose value is on its way: nothing here reads or writes the value.
_T = Tensor
_METADATA = frozenset(
    getter
    for name in ("shape", "dtype", "device", "layout", "is_leaf", "ndim", "grad", "requires_grad", "is_cuda")
    for getter in (getattr(_T, name).__get__, getattr(_T, name).__set__)
) | {_T.size, _T.numel, _T.dim, _T.element_size, _T.is_floating_point, _T.is_complex}


class PendingParameter(Parameter):
    """A parameter whose update has not landed."""

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _call(func, args, kwargs or {})

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        _settle(self)
        return copy.deepcopy(self, memo)


class PendingGradient(Tensor):
    """A gradient whose mean has not arrived."""

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _call(func, args, kwargs or {})

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        _settle(self)
        return copy.deepcopy(self, memo)


def hold(tensor: Tensor, settle: Callable[[], None]) -> None:
    """Has `settle` called before anyone reads `tensor`; it must `release` it, or raise.

    Args:
        tensor: a `Parameter` or a plain tensor, of no further subclass.
        settle: waits for the value.
    """
    _settlers[id(tensor)] = settle
    tensor.__class__ = PendingParameter if isinstance(tensor, Parameter) else PendingGradient


def release(tensor: Tensor) -> None:
    """Makes a tensor an ordinary one again."""
    if _settlers.pop(id(tensor), None) is not None:
        _plain(tensor)


def _plain(tensor: Tensor) -> None:
    tensor.__class__ = Parameter if isinstance(tensor, Parameter) else Tensor


def _call(func: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> Any:
    if func in _METADATA:
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)
    held = list(_held_in((args, kwargs)))
    for tensor in held:
        _settle(tensor)
    if not held:  # it hides somewhere in the arguments
        for settle in list(_settlers.values()):
            settle()
    return func(*args, **kwargs)


def _settle(tensor: Tensor) -> None:
    settle = _settlers.get(id(tensor))
    if settle is None:
        _plain(tensor)  # a copy that took the class along
    else:
        settle()


def _held_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, PendingParameter | PendingGradient):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _held_in(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _held_in(item)
