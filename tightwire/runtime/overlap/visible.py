"""Which modules read their parameters where nobody sees it."""

from __future__ import annotations

import torch
from torch import nn

from tightwire.errors import AttachError

_UNSEEN = ("ScriptModule", "OptimizedModule")


def require_visible(model: nn.Module, why: str) -> None:
    """Makes sure that every module's reads of its parameters can be seen.

    Args:
        model: attached.
        why: the schedule's name, for the error.

    Raises:
        AttachError: a module is scripted or compiled.
    """
    for name, module in model.named_modules():
        kinds = [kind.__name__ for kind in type(module).__mro__ if kind.__name__ in _UNSEEN]
        if module._compiled_call_impl is not None:
            kinds.append("module.compile()")
        if kinds:
            raise AttachError(
                f"{name or 'the model'} is scripted or compiled ({kinds[0]}): it reads parameters where nobody sees "
                f"it, and {why} updates them just before they are read. Attach the module uncompiled, or choose "
                "another schedule, such as mgwfbp."
            )


@torch.compiler.disable(
    reason="tightwire: parameters are updated just before they are read, which compiled code hides"
)
def refuse_compiled() -> None:
    """Refuses a forward pass that is being compiled.

    Raises:
        AttachError: always.
    """
    raise AttachError(
        "the attached model's forward pass is compiled (torch.compile), and under this schedule parameters are updated "
        "just before they are read, which compiled code hides. Run it uncompiled, or choose another schedule, such as "
        "mgwfbp."
    )
