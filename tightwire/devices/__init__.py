"""Where tensors live, and in which order work on them is seen. A new kind is a file here and a line in `DEVICES`.

The runtime speaks to the contract alone: it marks, follows, waits, copies, and never asks which device there is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from tightwire.devices.cpu import Cpu
from tightwire.devices.cuda import Cuda
from tightwire.devices.device import Device, DeviceMemory, Mark
from tightwire.errors import AttachError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = [
    "DEVICES",
    "Device",
    "DeviceMemory",
    "Mark",
    "device_named",
    "device_of",
    "kinds_of",
    "require_one_device",
]

# By the type that torch gives a device.
DEVICES: dict[str, Device] = {device.kind: device for device in (Cpu(), Cuda())}


def device_named(device: torch.device) -> Device:
    """Returns what `device_of` has accepted, by torch's name for it."""
    return DEVICES[device.type]


def device_of(tensors: Mapping[str, Tensor]) -> Device:
    """Returns where tensors live, by name.

    Raises:
        AttachError: names one that lives where nothing can be averaged.
    """
    for name, tensor in tensors.items():
        kind = tensor.device.type
        if kind == "meta":
            raise AttachError(
                f"{name} is on the meta device: it has a shape and no values. Make it real first, as with "
                "model.to_empty(device=...) and its own initialisation, and then attach."
            )
        if kind not in DEVICES:
            raise AttachError(
                f"{name} is on {tensor.device}; tensors can be averaged on {' and '.join(DEVICES)} alone. Train there, "
                "or stay with DistributedDataParallel."
            )
    return next((device_named(tensor.device) for tensor in tensors.values()), DEVICES["cpu"])


def require_one_device(tensors: Mapping[str, Tensor]) -> Device:
    """Returns where all tensors live, on a device that can be used.

    Raises:
        AttachError: tensors on two devices, or on one that cannot be used, by name.
    """
    found = device_of(tensors)
    named: dict[str, str] = {}
    for name, tensor in tensors.items():
        named.setdefault(str(tensor.device), name)
    if len(named) > 1:
        places = ", ".join(f"{name} on {device}" for device, name in named.items())
        raise AttachError(
            f"the model is on {len(named)} devices: {places}. A replica trains on one device; split it among workers "
            "with FSDP2 or pipelines, or move it with model.to(...)."
        )
    for tensor in list(tensors.values())[:1]:
        found.require_usable(tensor.device)
    return found


def kinds_of(tensors: Iterable[Tensor]) -> str:
    """Returns the types of the devices of tensors, joined by `and`: what ranks compare."""
    return " and ".join(sorted({tensor.device.type for tensor in tensors})) or "cpu"
