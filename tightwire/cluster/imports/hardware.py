"""What devices and links carry, by the names that tools give them; guesses are labelled as such by who uses them."""

from __future__ import annotations

import re
from collections.abc import Mapping

# Payload of one NVLink each way by compute capability, as NCCL's own graph search assumes (graph/topo.h).
NVLINK_BYTES_PER_S = {60: 18e9, 70: 20e9, 80: 20e9, 86: 12e9, 89: 12e9, 90: 20.6e9, 100: 40.1e9}
# xGMI between AMD devices, one link each way, as RCCL assumes (graph/topo.h) for MI200 and MI300; MI350's links are 1.2
# times as fast (76.8 against 64 GB/s, AMD data sheets).
XGMI_BYTES_PER_S: Mapping[str, float] = {"gfx90a": 36e9, "gfx94": 48e9, "gfx95": 57.6e9}
# Between a host's sockets, each way, as NCCL assumes (graph/topo.h): AMD, Intel since Skylake, IBM Power 9, others.
SOCKETS_BYTES_PER_S: Mapping[str, float] = {"AuthenticAMD": 16e9, "GenuineIntel": 10e9, "ppc64": 32e9}
OTHER_SOCKETS_BYTES_PER_S = 6e9
# PCI Express payload per lane, each way: transfers a second times what coding leaves: 8b/10b, 128b/130b, and from 64
# GT/s on flits of 256 bytes that carry 242 (PCI-SIG, PCI Express 6.0).
PCIE_BYTES_PER_S = {
    2.5: 0.25e9, 5.0: 0.5e9, 8.0: 0.985e9, 16.0: 1.969e9, 32.0: 3.938e9, 64.0: 7.563e9, 128.0: 15.125e9,
}  # fmt: skip
# What NCCL takes where the system does not say (graph/topo.cc): PCIe 3.0 with 16 lanes.
FALLBACK_GTS, FALLBACK_LANES = 8.0, 16

# NVLinks of whole devices, by the names that drivers give them: how many, and the generation's compute capability.
DEVICES: tuple[tuple[str, int, int], ...] = (
    (r"V100-SXM", 6, 70),
    (r"A100-SXM", 12, 80),
    (r"A800-SXM", 8, 80),
    (r"H800", 8, 90),
    (r"H100 80GB HBM3|H100 SXM|H200|H20\b|GH200", 18, 90),
    (r"B200|B300|GB200|GB300", 18, 100),
)


def nvlink(capability: int) -> float:
    """Returns what one NVLink of a device carries each way, by its compute capability."""
    known = max((sm for sm in NVLINK_BYTES_PER_S if sm <= capability), default=60)
    return NVLINK_BYTES_PER_S[known]


def inside_of_device(title: str) -> float | None:
    """Returns what a device has to others in its node, each way, by its name; None where the name says nothing.

    >>> inside_of_device("NVIDIA A100-SXM4-80GB"), inside_of_device("NVIDIA GeForce RTX 3090")
    (240000000000.0, None)
    """
    for pattern, links, capability in DEVICES:
        if re.search(pattern, title) and "PCIe" not in title:
            return links * nvlink(capability)
    return None
