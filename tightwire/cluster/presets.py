"""Common hardware, from its makers' pages: line rates times what their protocols leave for payload.

Rates are what one worker (one device) has to its neighbours in the node, and what a node has to others. They are peaks:
what `tightwire probe` measures is lower, and beats them.
"""

from __future__ import annotations

from dataclasses import dataclass

from tightwire.cluster.adding import Adding
from tightwire.cluster.fit import NcclWire
from tightwire.cluster.levels import Level
from tightwire.cluster.prices import Prices
from tightwire.cluster.values import PAYLOAD_SHARE, Cluster
from tightwire.errors import FileError

GIGABIT = 1e9 / 8
# RoCE and InfiniBand at MTU 4096 carry 4096 payload bytes in about 4170.
RDMA_SHARE = 4096 / 4170


@dataclass(frozen=True, kw_only=True)
class NodePrice:
    """What a node costs on demand, in US dollars; a list price, which changes: `--price` beats it.

    Attributes:
        per_hour: of a whole node.
        source: whose list, and of which region; `from memory` where no list was at hand to check it by.
        date: of the list, or from which on the maintainers know it.
    """

    per_hour: float
    source: str
    date: str

    def shared(self, devices: int) -> Prices:
        """Returns the prices of a cluster of such nodes with so many workers each."""
        return Prices(
            per_worker_hour=self.per_hour / devices, currency="USD", source=self.source, date=self.date
        )


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A kind of node, and what joins many of them.

    Attributes:
        title: in words.
        devices: workers per node.
        inside_bytes_per_s: each worker's payload rate inside the node, each way.
        across_bytes_per_s: the node's payload rate to others, each way.
        latency_s: of a small message between nodes.
        device_memory_bytes: of each device; 0: not a device of its own.
        adds: whether its switches add: inside the node (NVLink SHARP) and between nodes (SHARP).
        nccl: over what NCCL reaches other nodes, if its ways over it are known.
        source: where the figures come from.
        price: of a node by the hour, where somebody rents it out.
    """

    title: str
    devices: int
    inside_bytes_per_s: float
    across_bytes_per_s: float
    latency_s: float
    device_memory_bytes: int = 0
    adds: bool = False
    nccl: NcclWire | None = None
    source: str
    price: NodePrice | None = None

    def cluster(self, nodes: int) -> Cluster:
        """Returns `nodes` of them, joined by one non-blocking switch.

        Raises:
            FileError: no nodes.
        """
        if nodes < 1:
            raise FileError(f"{nodes} nodes of {self.title}: a cluster has at least 1.")
        inside = Level(
            name="node",
            workers=self.devices,
            bandwidth_bytes_per_s=self.inside_bytes_per_s,
            latency_s=min(self.latency_s, 1e-5),
        )
        across = Level(
            name="cluster",
            workers=self.devices * nodes,
            bandwidth_bytes_per_s=self.across_bytes_per_s,
            latency_s=self.latency_s,
        )
        memory_bytes = self.device_memory_bytes or None
        prices = self.price.shared(self.devices) if self.price else None
        if self.devices == 1:
            return Cluster(
                workers=nodes,
                bandwidth_bytes_per_s=self.across_bytes_per_s,
                latency_s=self.latency_s,
                devices=nodes,
                device_memory_bytes=memory_bytes,
            )
        levels = (inside, across) if nodes > 1 else (inside,)
        return Cluster(
            workers=self.devices * nodes,
            bandwidth_bytes_per_s=min(level.bandwidth_bytes_per_s for level in levels),
            latency_s=self.latency_s if nodes > 1 else inside.latency_s,
            levels=levels,
            devices=self.devices * nodes,
            device_memory_bytes=memory_bytes,
            prices=prices,
            nccl=self.nccl,
            adding=Adding(levels=tuple(level.name for level in levels)) if self.adds else None,
        )


def preset(name: str, nodes: int) -> Cluster:
    """Returns a cluster of known hardware.

    >>> preset("dgx-a100", 2).workers, preset("ethernet-1g", 4).workers
    (16, 4)

    Raises:
        FileError: an unknown name; the known ones are listed.
    """
    if name not in PRESETS:
        raise FileError(f"{name!r} is no known hardware; known: {', '.join(PRESETS)}.")
    return PRESETS[name].cluster(nodes)


def _ethernet(gigabits: float, latency_s: float) -> Preset:
    return Preset(
        title=f"hosts on {gigabits:g} Gb/s Ethernet, one worker each",
        devices=1,
        inside_bytes_per_s=gigabits * GIGABIT * PAYLOAD_SHARE,
        across_bytes_per_s=gigabits * GIGABIT * PAYLOAD_SHARE,
        latency_s=latency_s,
        source="IEEE 802.3; TCP at MTU 1500 carries 1448 payload bytes in 1514",
    )


PRESETS: dict[str, Preset] = {
    "ethernet-1g": _ethernet(1, 1e-4),
    "ethernet-10g": _ethernet(10, 5e-5),
    "ethernet-25g": _ethernet(25, 3e-5),
    "ethernet-100g": _ethernet(100, 2e-5),
    "dgx-1v": Preset(
        title="DGX-1: 8 V100 on an NVLink mesh, 4 × 100 Gb/s InfiniBand",
        devices=8,
        inside_bytes_per_s=6 * 25e9,
        across_bytes_per_s=4 * 100 * GIGABIT * RDMA_SHARE,
        latency_s=2e-6,
        device_memory_bytes=32 * 10**9,
        nccl="infiniband",
        source="NVIDIA DGX-1 with Tesla V100 system architecture, white paper WP-08437",
    ),
    "dgx-a100": Preset(
        title="DGX A100: 8 A100 on NVSwitch, 8 × 200 Gb/s InfiniBand",
        devices=8,
        inside_bytes_per_s=300e9,
        across_bytes_per_s=8 * 200 * GIGABIT * RDMA_SHARE,
        latency_s=2e-6,
        device_memory_bytes=80 * 10**9,
        nccl="infiniband",
        source="NVIDIA DGX A100 data sheet: NVLink 600 GB/s both ways per GPU, 8 single-port ConnectX-6",
    ),
    "dgx-h100": Preset(
        title="DGX H100: 8 H100 on NVSwitch, 8 × 400 Gb/s InfiniBand",
        devices=8,
        inside_bytes_per_s=450e9,
        across_bytes_per_s=8 * 400 * GIGABIT * RDMA_SHARE,
        latency_s=2e-6,
        device_memory_bytes=80 * 10**9,
        nccl="infiniband",
        source="NVIDIA DGX H100 data sheet: NVLink 900 GB/s both ways per GPU, 8 ConnectX-7",
    ),
    "dgx-h100-sharp": Preset(
        title="DGX H100 with switches that add: NVLink SHARP inside, SHARP over 8 × 400 Gb/s InfiniBand",
        devices=8,
        inside_bytes_per_s=450e9,
        across_bytes_per_s=8 * 400 * GIGABIT * RDMA_SHARE,
        latency_s=2e-6,
        device_memory_bytes=80 * 10**9,
        adds=True,
        nccl="infiniband",
        source="NVIDIA DGX H100 data sheet; Graham et al. 2020, SHARP streaming-aggregation, ISC",
    ),
    "aws-p4d": Preset(
        title="p4d.24xlarge: 8 A100 on NVSwitch, 400 Gb/s EFA",
        devices=8,
        inside_bytes_per_s=300e9,
        across_bytes_per_s=400 * GIGABIT * PAYLOAD_SHARE,
        latency_s=2e-5,
        device_memory_bytes=40 * 10**9,
        nccl="efa",
        source="Amazon EC2 P4 instances, product details",
        price=NodePrice(per_hour=21.957642, source="AWS price list, on demand, us-east-1", date="2026-11-09"),
    ),
    "aws-p5": Preset(
        title="p5.48xlarge: 8 H100 on NVSwitch, 3,200 Gb/s EFA",
        devices=8,
        inside_bytes_per_s=450e9,
        across_bytes_per_s=3200 * GIGABIT * PAYLOAD_SHARE,
        latency_s=2e-5,
        device_memory_bytes=80 * 10**9,
        nccl="efa",
        source="Amazon EC2 P5 instances, product details",
        price=NodePrice(per_hour=55.04, source="AWS price list, on demand, us-east-1", date="2026-11-09"),
    ),
    "aws-g5.12xlarge": Preset(
        title="g5.12xlarge: 4 A10G on PCIe, 40 Gb/s Ethernet",
        devices=4,
        inside_bytes_per_s=12e9,
        across_bytes_per_s=40 * GIGABIT * PAYLOAD_SHARE,
        latency_s=5e-5,
        device_memory_bytes=24 * 10**9,
        source="Amazon EC2 G5 instances, product details; PCIe 4.0 × 8",
        price=NodePrice(per_hour=5.672, source="from memory: AWS on demand, US East", date="2024-06-01"),
    ),
    "azure-nd-a100-v4": Preset(
        title="ND96asr A100 v4: 8 A100 on NVSwitch, 8 × 200 Gb/s InfiniBand",
        devices=8,
        inside_bytes_per_s=300e9,
        across_bytes_per_s=8 * 200 * GIGABIT * RDMA_SHARE,
        latency_s=3e-6,
        device_memory_bytes=40 * 10**9,
        nccl="infiniband",
        source="Microsoft Azure, NDasrA100_v4 sizes series",
        price=NodePrice(per_hour=27.197, source="Azure pay as you go, East US", date="2026-11-09"),
    ),
    "gcp-a2-highgpu-8g": Preset(
        title="a2-highgpu-8g: 8 A100 on NVSwitch, 100 Gb/s Ethernet",
        devices=8,
        inside_bytes_per_s=300e9,
        across_bytes_per_s=100 * GIGABIT * PAYLOAD_SHARE,
        latency_s=5e-5,
        device_memory_bytes=40 * 10**9,
        source="Google Cloud, GPU machine types: network bandwidth",
        price=NodePrice(
            per_hour=29.39, source="from memory: Google Cloud on demand, us-central1", date="2024-06-01"
        ),
    ),
    "gcp-a3-highgpu-8g": Preset(
        title="a3-highgpu-8g: 8 H100 on NVSwitch, 1,000 Gb/s GPUDirect-TCPX",
        devices=8,
        inside_bytes_per_s=450e9,
        across_bytes_per_s=800 * GIGABIT * PAYLOAD_SHARE,
        latency_s=5e-5,
        device_memory_bytes=80 * 10**9,
        source="Google Cloud, GPU machine types: four 200 Gb/s NICs for GPUs",
        price=NodePrice(
            per_hour=87.83,
            source="eight times a3-highgpu-1g in Google Cloud's catalogue, us-central1, without its SSD",
            date="2026-09-26",
        ),
    ),
    "gcp-a3-megagpu-8g": Preset(
        title="a3-megagpu-8g: 8 H100 on NVSwitch, 1,600 Gb/s GPUDirect-TCPXO",
        devices=8,
        inside_bytes_per_s=450e9,
        across_bytes_per_s=1600 * GIGABIT * PAYLOAD_SHARE,
        latency_s=5e-5,
        device_memory_bytes=80 * 10**9,
        nccl="tcpxo",
        source="Google Cloud, GPU machine types: eight 200 Gb/s NICs for GPUs",
    ),
    "survey-2080ti-10g": Preset(
        title="4 RTX 2080 Ti on PCIe 3.0, 10 Gb/s Ethernet",
        devices=4,
        inside_bytes_per_s=12e9,
        across_bytes_per_s=10 * GIGABIT * PAYLOAD_SHARE,
        latency_s=3e-5,
        device_memory_bytes=11 * 10**9,
        source="Shi et al., arXiv:2005.13247, section IV",
    ),
    "survey-2080ti-ib": Preset(
        title="4 RTX 2080 Ti on PCIe 3.0, 100 Gb/s InfiniBand",
        devices=4,
        inside_bytes_per_s=12e9,
        across_bytes_per_s=100 * GIGABIT * RDMA_SHARE,
        latency_s=3e-6,
        device_memory_bytes=11 * 10**9,
        source="Shi et al., arXiv:2005.13247, section IV",
    ),
}
