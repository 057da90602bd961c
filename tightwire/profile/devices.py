"""Devices by name, and profiles derived from a model's shape and a device's speed, without running anything.

Peaks are those of the makers' data sheets, dense. Products reach a share of them, and what lies between products waits
for memory (Williams et al. 2009, roofline): a step takes the one and the other. It is a prior, held to published speeds
in tests/profile/test_devices.py; `tightwire profile` beats it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from tightwire.cluster import require_range
from tightwire.errors import FileError
from tightwire.profile.cost import MAX_SECONDS
from tightwire.profile.models import Layer, ModelShape
from tightwire.profile.values import MAX_SAMPLES, ParameterProfile, Profile

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
# Each activation is written and read forward, and four of its reads and two writes are backward's: of itself for the
# weights' gradients, and of its own gradient by what made it and by what normalises it.
TOUCHES_PER_ACTIVATION = 8
# While NCCL's kernels run beside it, compute takes 1.189 times as long in the mean and 1.40 times at most (Lee et al.
# 2025, arXiv:2507.03114: GPT and LLaMA on four A100, H100, MI250 or MI210, against compute with nothing beside it).
NCCL_SLOWDOWN = 1.19
# Codecs' kernels keep the memory busy, which a training step waits for as well: at worst compute loses all their time,
# as if they ran on its own stream. A bound, and not a measurement.
KERNEL_SHARE = 1.0
# Between that mean and that maximum two standard deviations: (0.40 − 0.19) / 2 / 0.19.
SHARING_UNCERTAINTY = 0.55
# How far this is from published training speeds, relative.
DATA_SHEET_UNCERTAINTY = 0.25


@dataclass(frozen=True, kw_only=True)
class DeviceFacts:
    """What a worker trains on.

    Attributes:
        name: as in `--device NAME`.
        flops_per_s: peak of dense products in the precision of training.
        memory_bytes_per_s: of its memory.
        memory_bytes: size of its memory.
        host_bytes_per_s: of copies between it and its host, each way: what PCIe × 16 leaves for payload.
        nccl_slowdown: how many times as long compute takes beside NCCL's kernels.
        kernel_share: of the time of codecs' kernels, what compute beside them loses.
        sharing_uncertainty: standard deviation over value of what those two take.
        efficiency: share of the peak that the products of a well-kept training step reach.
        value_bytes: of an activation, in the precision of training.
        source: where the figures come from.
    """

    name: str
    flops_per_s: float
    memory_bytes_per_s: float
    memory_bytes: int
    host_bytes_per_s: float = PCIE_4
    nccl_slowdown: float = NCCL_SLOWDOWN
    kernel_share: float = KERNEL_SHARE
    sharing_uncertainty: float = SHARING_UNCERTAINTY
    efficiency: float = 0.4
    value_bytes: int = 2
    source: str = ""

    def __post_init__(self) -> None:
        require_range("flops_per_s", self.flops_per_s, 1e6, 1e17)
        require_range("memory_bytes_per_s", self.memory_bytes_per_s, 1e6, 1e15)
        require_range("memory_bytes", self.memory_bytes, 1e6, 1e13)
        require_range("host_bytes_per_s", self.host_bytes_per_s, 1e6, 1e15)
        require_range("nccl_slowdown", self.nccl_slowdown, 1.0, 100.0)
        require_range("kernel_share", self.kernel_share, 0.0, 10.0)
        require_range("efficiency", self.efficiency, 1e-3, 1.0)

    def forward_s(self, layer: Layer) -> float:
        """Returns what a layer takes forward, of one sample."""
        touched_bytes = TOUCHES_PER_ACTIVATION * layer.kept_values * self.value_bytes
        passes = 1 + BACKWARD_OVER_FORWARD
        products_s = layer.forward_flops / (self.flops_per_s * self.efficiency)
        return products_s + touched_bytes / self.memory_bytes_per_s / passes

    def priced(self, profile: Profile) -> Profile:
        """Returns a profile whose exchanges cost what they do on this device, as far as its sheet and papers tell."""
        itemsize = profile.parameters[0].itemsize
        return dataclasses.replace(
            profile,
            pass_s_per_element=TOUCHES_PER_PASS * itemsize / self.memory_bytes_per_s,
            copy_s_per_byte=1 / self.host_bytes_per_s,
            nccl_slowdown=self.nccl_slowdown,
            kernel_share=self.kernel_share,
            sharing_uncertainty=self.sharing_uncertainty,
        )


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

    Forward takes its operations over the speed that the device reaches and its activations over the memory's rate,
    backward twice that, the optimizer its traffic over the memory's rate. A gradient is ready when its layer and all
    after it are done.

    Args:
        shape: the model.
        on: the device.
        batch: samples per worker and step.
        itemsize: bytes per element of gradients.
        noise: spread of step times, relative.

    Raises:
        FileError: no samples, or more than a step can be predicted with.
    """
    if batch < 1:
        raise FileError(f"batch: {batch} samples per step: at least 1.")
    forward_s = batch * sum(on.forward_s(layer) for layer in shape.layers)
    backward_s = BACKWARD_OVER_FORWARD * forward_s
    if batch > MAX_SAMPLES or backward_s > MAX_SECONDS:
        raise FileError(
            f"batch: {batch:,} samples ({shape.sample}) would take {forward_s + backward_s:,.0f} s a step on "
            f"{on.name}; a pass of {MAX_SECONDS:,.0f} s and {MAX_SAMPLES:,.0f} samples are the most. Take fewer."
        )
    parameters, done = [], 0.0
    for layer in reversed(shape.layers):
        done += batch * on.forward_s(layer) / forward_s
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
    found = Profile(
        forward_s=forward_s,
        backward_s=backward_s,
        optimizer_s=shape.numel * OPTIMIZER_BYTES_PER_PARAMETER / on.memory_bytes_per_s,
        parameters=tuple(parameters),
        noise=noise,
        compute_uncertainty=DATA_SHEET_UNCERTAINTY,
        samples=batch,
        device=on.name,
        memory_bytes=shape.numel * STATE_BYTES_PER_PARAMETER,
        activation_bytes=round(batch * shape.kept_values * on.value_bytes),
    )
    return on.priced(found)


def _nvidia(
    name: str,
    tera: float,
    bandwidth: float,
    gigabytes: int,
    sheet: str,
    *,
    host_bytes_per_s: float = PCIE_4,
    efficiency: float = 0.4,
    value_bytes: int = 2,
) -> DeviceFacts:
    return DeviceFacts(
        name=name,
        flops_per_s=tera * 1e12,
        memory_bytes_per_s=bandwidth,
        memory_bytes=gigabytes * 10**9,
        host_bytes_per_s=host_bytes_per_s,
        efficiency=efficiency,
        value_bytes=value_bytes,
        source=f"NVIDIA {sheet} data sheet",
    )


# A GPU whose name nobody told: an old one of data centres.
SOME_GPU = DeviceFacts(
    name="gpu", flops_per_s=1e14, memory_bytes_per_s=900e9, memory_bytes=16 * 10**9, host_bytes_per_s=PCIE_3
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
            efficiency=0.75,
            host_bytes_per_s=PCIE_3,
            value_bytes=4,
        ),
        _nvidia("rtx3090", 71, 936e9, 24, "GeForce RTX 3090, half precision"),
        _nvidia("rtx4090", 165, 1.008e12, 24, "GeForce RTX 4090, half precision"),
    )
}
