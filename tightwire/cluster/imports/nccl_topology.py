"""NCCL's and RCCL's topology XML, as `NCCL_TOPO_DUMP_FILE` writes it.

Words: graph/xml.cc and graph/topo.cc of NVIDIA/nccl, and RCCL's. Speeds of networks are in Mb/s; a socket's is 10,000
where the system does not tell (net_socket.cc); links of a virtual machine have width 0.
"""

from __future__ import annotations

import math
import pathlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tightwire import files
from tightwire.cluster.fit import NcclWire
from tightwire.cluster.imports import hardware
from tightwire.cluster.imports.nvidia_smi import from_nvidia_smi
from tightwire.cluster.levels import Level
from tightwire.cluster.values import Cluster
from tightwire.errors import FileError
from tightwire.units import print_rate

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

NETWORK_LATENCY_S = 5e-6
SOCKET_STAND_IN_MBIT = 10_000
KNOWN = {"system", "cpu", "pci", "gpu", "nvlink", "xgmi", "c2c", "pcilink", "nic", "net"}
MOST_DEVICES = 100_000


@dataclass
class _Reading:
    """One file while it is read.

    Attributes:
        path: the file.
        root: its XML.
        above: what holds each element.
        notes: what was guessed, in sentences; each once.
    """

    path: str | pathlib.Path
    root: Element
    above: dict[Element, Element]
    notes: list[str] = field(default_factory=list)

    def note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)

    def number(self, element: Element, name: str, default: float) -> float:
        """Returns a number of an element; what stands there and is none is refused by name."""
        text = (element.get(name) or "").strip()
        if not text:
            return default
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 <= value < 1e12:
            raise FileError(
                f"{self.path}: {element.tag} has {name}={text[:40]!r}, which is no number it can have."
            )
        return value

    def holders(self, element: Element) -> Iterator[Element]:
        """Yields what holds an element, from the inside out."""
        while (holder := self.above.get(element)) is not None:
            yield holder
            element = holder


def from_nccl_topology(path: str | pathlib.Path, nodes: int = 1) -> Cluster:
    """Returns a cluster of nodes like the one that NCCL wrote.

    A worker's rate inside is that of its NVLinks or xGMI links, else of the PCI Express lanes on its way; a node's rate
    to others is the sum of its network ports, each slot's at most what its lanes carry. What the file does not say is
    guessed as NCCL does, and the cluster's notes say so.

    Raises:
        FileError: unreadable, no GPU in it, or several nodes of a node without a network.
    """
    text = files.read_text(path, most_bytes=10**8)
    if not text.lstrip().startswith("<") and "GPU0" in text:
        return from_nvidia_smi(path, nodes)  # what people take for the topology
    root = files.parse_xml(text, str(path))
    reading = _Reading(path, root, {child: holder for holder in root.iter() for child in holder})
    if unknown := sorted({element.tag for element in root.iter()} - KNOWN):
        reading.note(f"Not known and left out: {', '.join(f'<{tag}>' for tag in unknown[:5])}.")
    gpus = list(root.iter("gpu"))
    if not gpus or root.tag != "system":
        raise FileError(f"{path} describes no GPU; write it with NCCL_TOPO_DUMP_FILE while a job runs.")
    if len(gpus) * nodes > MOST_DEVICES:
        raise FileError(f"{path}: {nodes} nodes of {len(gpus)} GPUs are more than {MOST_DEVICES:,}.")
    levels = _inside(reading, gpus)
    if nodes > 1:
        levels = (*levels, _across(reading, len(gpus), nodes))
    cluster = Cluster.of_levels(*levels)
    return Cluster(
        workers=cluster.workers,
        bandwidth_bytes_per_s=cluster.bandwidth_bytes_per_s,
        latency_s=cluster.latency_s,
        levels=cluster.levels,
        nccl=_wire(root),
        notes=tuple(reading.notes),
    )


def _wire(root: Element) -> NcclWire | None:
    """Returns what NCCL's network is, by the names that drivers give its devices."""
    names = [net.get("name") or "" for net in root.iter("net")]
    known: tuple[tuple[str, NcclWire], ...] = ((r"mlx|ib", "infiniband"), (r"rdmap|efa", "efa"))
    return next(
        (wire for words, wire in known if names and all(re.match(words, name) for name in names)), None
    )


def _inside(reading: _Reading, gpus: list[Element]) -> tuple[Level, ...]:
    """Returns the level of one host; and of all hosts in the file, where NVLink spans several."""
    rate = min(_rate(reading, gpu) for gpu in gpus)
    hosts = [_host(reading, gpu) for gpu in gpus]
    names = list(dict.fromkeys(hosts))
    if len(names) == 1:
        return (
            Level(name="node", workers=len(gpus), bandwidth_bytes_per_s=_over_sockets(reading, gpus, rate)),
        )
    each = len(gpus) // len(names)
    reading.note(
        f"{len(names)} hosts are fused in this file, as NCCL does where one NVLink domain spans hosts: their GPUs are "
        "taken to reach each other by NVLink, and networks are counted for all of these hosts together."
    )
    if len(gpus) % len(names) or any(hosts.count(name) != each for name in names):
        reading.note("The hosts do not hold equally many GPUs, so that no level stands for a host.")
        return (Level(name="domain", workers=len(gpus), bandwidth_bytes_per_s=rate),)
    if each == 1:
        return (Level(name="domain", workers=len(gpus), bandwidth_bytes_per_s=rate),)
    return (
        Level(name="node", workers=each, bandwidth_bytes_per_s=rate),
        Level(name="domain", workers=len(gpus), bandwidth_bytes_per_s=each * rate),
    )


def _across(reading: _Reading, gpus: int, nodes: int) -> Level:
    nets = [net for net in reading.root.iter("net") if not _is_merged(net, reading.root)]
    slots: dict[Element | None, float] = {}
    for net in nets:
        is_down = (net.get("speed") or "").strip() == "-1"  # as Linux says of a port without a link
        speed = 0.0 if is_down else reading.number(net, "speed", 0.0)
        if not speed:
            reading.note(
                f"{net.get('name') or 'A network'} has no speed in the file, as ports that are down: left out."
            )
        slot = next((holder for holder in reading.holders(net) if holder.tag == "pci"), None)
        slots[slot] = slots.get(slot, 0.0) + speed * 1e6 / 8
        if slot is None and speed == SOCKET_STAND_IN_MBIT:
            reading.note(
                f"{net.get('name') or 'A network'} is said to have 10 Gb/s, which NCCL also writes where it does not "
                "know: measure it (tightwire probe)."
            )
    across = sum(rate if slot is None else _of_slot(reading, slot, rate) for slot, rate in slots.items())
    if not across:
        raise FileError(
            f"{reading.path} describes a node without a network; nodes={nodes} of them are not joined."
        )
    latency_us = max(reading.number(net, "latency", 0.0) for net in nets)
    if not latency_us:
        reading.note("The latency between nodes is not in the file: 5 us are a guess.")
    return Level(
        name="cluster",
        workers=nodes * gpus,
        bandwidth_bytes_per_s=across,
        latency_s=min(1.0, latency_us * 1e-6) or NETWORK_LATENCY_S,
    )


def _is_merged(net: Element, root: Element) -> bool:
    """Says whether a network stands for several others that are listed too, as NCCL's merged ports do."""
    parts = (net.get("name") or "").split("+")
    return len(parts) > 1 and all(
        any(other.get("name") == part for other in root.iter("net")) for part in parts
    )


def _of_slot(reading: _Reading, slot: Element, rate: float) -> float:
    lanes = _pcie(reading, slot)
    if lanes is None or rate <= lanes:
        return rate
    reading.note(
        f"The network ports in slot {slot.get('busid')} have {print_rate(rate)}, and its lanes carry "
        f"{print_rate(lanes)}."
    )
    return lanes


def _rate(reading: _Reading, gpu: Element) -> float:
    """Returns what one GPU has to the others of its node, each way."""
    links = sum(reading.number(link, "count", 1.0) for link in gpu.iter("nvlink"))
    if links:
        if not gpu.get("sm"):
            reading.note(
                "A GPU's compute capability is not in the file: 20 GB/s for each NVLink, as A100's, is a guess."
            )
        return links * hardware.nvlink(int(reading.number(gpu, "sm", 70.0)))
    if links := sum(reading.number(link, "count", 1.0) for link in gpu.iter("xgmi")):
        kind = gpu.get("gcn") or ""
        known = [rate for name, rate in hardware.XGMI_BYTES_PER_S.items() if kind.startswith(name)]
        if not known:
            reading.note(
                f"The xGMI links of {kind or 'this GPU'} are not known: 48 GB/s each, as MI300's, are a guess."
            )
        return links * (known[0] if known else hardware.XGMI_BYTES_PER_S["gfx94"])
    slots = [holder for holder in reading.holders(gpu) if holder.tag == "pci"]
    known_slots = [rate for slot in slots if (rate := _pcie(reading, slot)) is not None]
    if known_slots:
        return min(known_slots)
    rate = hardware.PCIE_BYTES_PER_S[hardware.FALLBACK_GTS] * hardware.FALLBACK_LANES
    reading.note(
        "The lanes of a GPU are not in the file (link_width 0 or none, as in virtual machines): PCI Express 3.0 with "
        f"16 lanes, {print_rate(rate)}, is NCCL's guess and ours. Measure it (nccl-tests on one node)."
    )
    return rate


def _pcie(reading: _Reading, slot: Element) -> float | None:
    """Returns what a slot's lanes carry each way; None where the file does not say."""
    width = reading.number(slot, "link_width", 0.0)
    words = slot.get("link_speed") or ""
    match = re.match(r"\s*(\d+(?:\.\d+)?)", words)
    if not match or not width:
        if words.strip() and not match and "unknown" not in words.lower():
            reading.note(f"The link speed {words[:40]!r} is not known and left out.")
        return None
    speed = float(match[1])
    if speed not in hardware.PCIE_BYTES_PER_S:
        nearest = max(
            (s for s in hardware.PCIE_BYTES_PER_S if s <= speed), default=min(hardware.PCIE_BYTES_PER_S)
        )
        reading.note(f"The link speed {words[:40]!r} is not known: taken for {nearest:g} GT/s.")
        speed = nearest
    return hardware.PCIE_BYTES_PER_S[speed] * min(width, 64.0)


def _host(reading: _Reading, gpu: Element) -> str:
    return next((h.get("host_hash") or "" for h in reading.holders(gpu) if h.tag == "cpu"), "")


def _over_sockets(reading: _Reading, gpus: list[Element], rate: float) -> float:
    """Returns the rate of a ring through all GPUs, which crosses from socket to socket where no GPU links do."""
    cpus = {next((h for h in reading.holders(gpu) if h.tag == "cpu"), None) for gpu in gpus}
    if len(cpus) < 2 or any(True for gpu in gpus for _ in (*gpu.iter("nvlink"), *gpu.iter("xgmi"))):
        return rate
    cpu = next(cpu for cpu in cpus if cpu is not None)
    known = hardware.SOCKETS_BYTES_PER_S
    between = known.get(
        cpu.get("vendor") or "", known.get(cpu.get("arch") or "", hardware.OTHER_SOCKETS_BYTES_PER_S)
    )
    if between < rate:
        reading.note(
            f"GPUs are on {len(cpus)} sockets without links of their own: {print_rate(between)} between sockets is "
            "NCCL's assumption."
        )
    return min(rate, between)
