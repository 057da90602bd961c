"""Whether a model was loaded after it was attached: what carries out a plan may hold what that was before."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from torch import nn
from torch.nn import Parameter
from torch.utils.hooks import RemovableHandle


class LoadWatch:
    """Hears of `load_state_dict` of what a model shares with others, by itself or as a part of something larger.

    Attributes:
        is_loaded: whether it was called.
    """

    def __init__(self, model: nn.Module, shared: Iterable[Parameter]) -> None:
        """Puts hooks in.

        Args:
            model: the user's.
            shared: of its parameters; what else it has, as frozen parts or a rank's own experts, nobody has copied.
        """
        self.is_loaded = False
        self._handles: list[RemovableHandle] = []
        hook, held = _Hook(self), set(shared)
        for module in model.modules():
            if held.isdisjoint(module.parameters(recurse=False)):
                continue
            with suppress(RuntimeError):  # one that was scripted takes no hooks
                handle = module.register_load_state_dict_post_hook(hook)
                self._handles.append(handle)

    def close(self) -> None:
        """Takes the hooks out."""
        for handle in self._handles:
            handle.remove()


class _Hook:
    """A hook of a module; one that is copied or saved along with it does nothing."""

    def __init__(self, watch: LoadWatch | None = None) -> None:
        self._watch = watch

    def __call__(self, module: nn.Module, keys: Any) -> None:
        if self._watch is not None:
            self._watch.is_loaded = True

    def __reduce__(self) -> tuple[Any, ...]:
        return _Hook, ()

    def __deepcopy__(self, memo: object) -> _Hook:
        return _Hook()
