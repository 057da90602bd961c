"""The shape of any module, found on the meta device: parameters and operations, with nothing allocated or computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tightwire.errors import FileError
from tightwire.profile.models import Layer, ModelShape


def module_shape(
    build: Callable[[], nn.Module], *inputs: Any, samples: int = 1, name: str = "model"
) -> ModelShape:
    """Returns the layers of a module in the order in which a forward pass first runs them.

    Operations are counted by `torch.utils.flop_counter`; those of a module that are none of its children's, such as
    attention's products, belong to the last child that ran before it ended. A parameter used twice counts once.

    Args:
        build: makes the module; called with the meta device as default, so that large ones cost nothing.
        inputs: of its forward pass, on the meta device; of `samples` samples.
        samples: how many.
        name: of the model, for messages.

    Raises:
        FileError: a module without parameters, or a forward pass that needs values.
    """
    with torch.device("meta"):
        module = build()
    order: list[str] = []
    handles = [
        part.register_forward_hook(lambda *_, path=path: order.append(path) if path not in order else None)
        for path, part in module.named_modules()
    ]
    counter = FlopCounterMode(display=False)
    try:
        with counter, torch.no_grad():
            module(*inputs)
    except (RuntimeError, NotImplementedError) as error:
        raise FileError(
            f"{name} cannot be derived: its forward pass needs values, and the meta device has none ({error}); "
            "profile a training script instead."
        ) from None
    finally:
        for handle in handles:
            handle.remove()
    layers = _layers(module, order, counter.get_flop_counts(), samples)
    if not any(layer.shapes for layer in layers):
        raise FileError(f"{name} has no parameters, so there is nothing to exchange.")
    return ModelShape(name=name, sample="a sample", layers=layers, paper="derived on the meta device")


def _layers(
    module: nn.Module, order: list[str], counts: dict[str, dict[Any, int]], samples: int
) -> tuple[Layer, ...]:
    root = type(module).__name__
    total = {path: sum(counts.get(f"{root}.{path}" if path else root, {}).values()) for path in order}
    seen: set[int] = set()
    layers = []
    for path in order:  # a module ends after its children; it counts what those of them hold that never ran
        part = module.get_submodule(path)
        children = [f"{path}.{child}" if path else child for child, _ in part.named_children()]
        own = total[path] - sum(total.get(child, 0) for child in children)
        shapes = {
            key: tuple(parameter.shape)
            for key, parameter in part.named_parameters()
            if id(parameter) not in seen
        }
        seen |= {id(parameter) for parameter in part.parameters()}
        if shapes or own:
            layers.append(Layer(name=path or root, shapes=shapes, forward_flops=max(0, own) / samples))
    return tuple(layers)
