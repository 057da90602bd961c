"""Where tensors live, and in which order work on them is seen. A new kind is a file here and a line in `DEVICES`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from tightwire.devices.cpu import Cpu
from tightwire.devices.device import Device, Mark
from tightwire.errors import AttachError

__all__ = ["DEVICES", "Device", "Mark", "device_of"]

# By the type that torch gives a device.
DEVICES: Mapping[str, Device] = {"cpu": Cpu()}


def device_of(tensors: Mapping[str, Tensor]) -> Device:
    """Returns where tensors live, by name.

    Raises:
        AttachError: names one that lives where nothing can be averaged.
    """
    if elsewhere := {name: t.device for name, t in tensors.items() if t.device.type not in DEVICES}:
        name, device = next(iter(elsewhere.items()))
        raise AttachError(
            f"{len(elsewhere)} parameters, {name} among them, are on {device}; this release averages tensors in host "
            "memory only: codecs have kernels for a GPU too, but no exchange of what they write has been tried on one. "
            "Train on CPU, or stay with DistributedDataParallel for now."
        )
    return next((DEVICES[tensor.device.type] for tensor in tensors.values()), DEVICES["cpu"])
