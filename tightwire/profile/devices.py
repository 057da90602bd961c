"""Devices by name, and profiles derived from a model's shape and a device's speed, without running anything.

Peaks are those of the makers' data sheets, dense. A training step reaches a share of them: what is assumed here unless
told is a prior, and `tightwire profile` beats it.
"""

from __future__ import annotations

from dataclasses import dataclass

from tightwire.cluster import require_range
from tightwire.errors import FileError
from tightwire.profile.models import ModelShape
from tightwire.profile.values import ParameterProfile, Profile

# Backward computes gradients by inputs and by weights: twice the forward's products.
BACKWARD_OVER_FORWARD = 2.0
# Adam reads gradient, parameter and two moments, and writes three, in single precision.
OPTIMIZER_BYTES_PER_PARAMETER = 28
# A pass adds one buffer to another: two are read, one is written.
TOUCHES_PER_PASS = 3
# Parameters, gradients and Adam's moments in single precision.
STATE_BYTES_PER_PARAMETER = 16
# What copies over PCIe 3.0, 4.0 and 5.0 × 16 reach, of 15.8, 31.5 and 63 GB/s.
PCIE_3, PCIE_4, PCIE_5 = 12e9, 24e9, 50e9
# How far data sheets were from published training speeds of ResNet-50 and BERT on V100 and A100, relative.
DATA_SHEET_UNCERTAINTY = 0.4


@dataclass(frozen=True, kw_only=True)
class DeviceFacts:
    """What a worker trains on.

    Attributes:
        name: as in `--device NAME`.
        flops_per_s: peak of dense products in the precision of training.
        memory_bytes_per_s: of its memory.
        memory_bytes: size of its memory.
        host_bytes_per_s: of copies between it and its host, each way: what PCIe × 16 leaves for payload.
        efficiency: share of the peak that a well-kept training step reaches.
        source: where the figures come from.
    """

    name: str
    flops_per_s: float
    memory_bytes_per_s: float
    memory_bytes: int
    host_bytes_per_s: float = PCIE_4
    efficiency: float = 0.4
    source: str = ""

    def __post_init__(self) -> None:
        require_range("flops_per_s", self.flops_per_s, 1e6, 1e17)
        require_range("memory_bytes_per_s", self.memory_bytes_per_s, 1e6, 1e15)
        require_range("memory_bytes", self.memory_bytes, 1e6, 1e13)
        require_range("host_bytes_per_s", self.host_bytes_per_s, 1e6, 1e15)
        require_range("efficiency", self.efficiency, 1e-3, 1.0)


def device(name: str) -> DeviceFacts:
    """Returns a device by name.

    Raises:
        FileError: an unknown name; the known ones are listed.
    """
    if name not in DEVICES:
        raise FileError(f"{name!r} is no known device; known: {', '.join(DEVICES)}.")
    return DEVICES[name]


def derive(
    shape: ModelShape, on: DeviceFacts, batch: int, *, itemsize: int = 4, noise: float = 0.02
) -> Profile:
    """Returns the profile that a model should have on a device.

    Forward takes its operations over the speed that the device reaches, backward twice that, the optimizer its traffic
    over the memory's rate. A gradient is ready when the operations of its layer and all after it are done.

    Args:
        shape: the model.
        on: the device.
        batch: samples per worker and step.
        itemsize: bytes per element of gradients.
        noise: spread of step times, relative.

    Raises:
        FileError: no samples.
    """
    if batch < 1:
        raise FileError(f"batch: {batch} samples per step: at least 1.")
    forward_s = batch * shape.forward_flops / (on.flops_per_s * on.efficiency)
    backward_s = BACKWARD_OVER_FORWARD * forward_s
    parameters, done = [], 0.0
    for layer in reversed(shape.layers):
        done += layer.forward_flops / shape.forward_flops
        parameters += [
            ParameterProfile(
                name=f"{layer.name}.{name}",
                numel=numel,
                itemsize=itemsize,
                ready_s=backward_s * min(1.0, done),
                shape=layer.shapes[name],
            )
            for name, numel in reversed(tuple(zip(layer.shapes, layer.numels, strict=True)))
        ]
    return Profile(
        forward_s=forward_s,
        backward_s=backward_s,
        optimizer_s=shape.numel * OPTIMIZER_BYTES_PER_PARAMETER / on.memory_bytes_per_s,
        parameters=tuple(parameters),
        pass_s_per_element=TOUCHES_PER_PASS * itemsize / on.memory_bytes_per_s,
        copy_s_per_byte=1 / on.host_bytes_per_s,
        noise=noise,
        compute_uncertainty=DATA_SHEET_UNCERTAINTY,
        samples=batch,
        device=on.name,
        memory_bytes=shape.numel * STATE_BYTES_PER_PARAMETER,
    )


def _nvidia(
    name: str, tera: float, bandwidth: float, gigabytes: int, sheet: str, **more: float
) -> DeviceFacts:
    return DeviceFacts(
        name=name,
        flops_per_s=tera * 1e12,
        memory_bytes_per_s=bandwidth,
        memory_bytes=gigabytes * 10**9,
        source=f"NVIDIA {sheet} data sheet",
        **more,
    )


DEVICES: dict[str, DeviceFacts] = {
    d.name: d
    for d in (
        _nvidia("v100", 125, 900e9, 32, "V100, half precision", host_bytes_per_s=PCIE_3),
        _nvidia("a100-40gb", 312, 1.555e12, 40, "A100, bfloat16"),
        _nvidia("a100", 312, 2.039e12, 80, "A100, bfloat16"),
        _nvidia("h100", 989, 3.35e12, 80, "H100 SXM, bfloat16", host_bytes_per_s=PCIE_5),
        _nvidia("h200", 989, 4.8e12, 141, "H200 SXM, bfloat16", host_bytes_per_s=PCIE_5),
        _nvidia("a10g", 70, 600e9, 24, "A10G, half precision"),
        _nvidia("t4", 65, 320e9, 16, "T4, half precision", host_bytes_per_s=PCIE_3),
        _nvidia("l4", 121, 300e9, 24, "L4, bfloat16"),
        _nvidia(
            "rtx2080ti",
            13.4,
            616e9,
            11,
            "GeForce RTX 2080 Ti, single precision",
            efficiency=0.5,
            host_bytes_per_s=PCIE_3,
        ),
        _nvidia("rtx3090", 71, 936e9, 24, "GeForce RTX 3090, half precision"),
        _nvidia("rtx4090", 165, 1.008e12, 24, "GeForce RTX 4090, half precision"),
    )
}
