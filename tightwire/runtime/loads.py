"""Whether a model was loaded after it was attached: what carries out a plan may hold what that was before."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle


class LoadWatch:
    """Hears of `load_state_dict` of a model, of one that holds it, or of a part of it.

    Attributes:
        is_loaded: whether it was called.
    """

    def __init__(self, model: nn.Module) -> None:
        self.is_loaded = False
        self._handles: list[RemovableHandle] = []
        hook = _Hook(self)
        for module in model.modules():
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
