"""The matrix of `nvidia-smi topo -m`: who is joined to whom by how many NVLinks, or by which part of PCI Express."""

from __future__ import annotations

import pathlib
import re

from tightwire import files
from tightwire.cluster.imports import hardware
from tightwire.cluster.values import Cluster
from tightwire.errors import FileError
from tightwire.units import print_rate

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# A device has no more; larger sums are the same links, seen through a switch by every other device.
MOST_LINKS = 18
LINK_BYTES_PER_S = hardware.NVLINK_BYTES_PER_S[80]
PCIE_WORDS = ("PIX", "PXB", "PHB", "NODE", "SYS", "SOC")


def from_nvidia_smi(path: str | pathlib.Path, nodes: int = 1) -> Cluster:
    """Returns the node that the matrix describes, with guesses for what it does not say: the notes name them.

    Raises:
        FileError: unreadable, no matrix in it, words that are not known, or several nodes: it has no network speeds.
    """
    matrix = _matrix(COLOUR.sub("", files.read_text(path, most_bytes=10**7, strict=False)), path)
    if nodes > 1:
        raise FileError(
            f"{path}: `nvidia-smi topo -m` does not say how fast a node's network is, so {nodes} nodes cannot be made "
            "of it; import nccl-topology (NCCL_TOPO_DUMP_FILE) or nccl-tests instead."
        )
    workers = len(matrix)
    if workers < 2:
        raise FileError(f"{path} lists {workers} GPU; there is nothing to exchange inside this node.")
    links = [sum(int(word[2:]) for word in row if word.startswith("NV")) for row in matrix]
    if all(links):
        through = [max(int(word[2:]) for word in row if word.startswith("NV")) for row in matrix]
        fewest = min(sum_ if sum_ <= MOST_LINKS else most for sum_, most in zip(links, through, strict=True))
        rate = fewest * LINK_BYTES_PER_S
        note = (
            f"The matrix tells {fewest} NVLinks of the device with the fewest, not their generation: {print_rate(rate)}"
            " takes 20 GB/s each way of each, as of V100, A100 and H100; Blackwell's are twice as fast."
        )
    else:
        crosses = any(word in ("SYS", "SOC") for row in matrix for word in row)
        lanes = hardware.PCIE_BYTES_PER_S[hardware.FALLBACK_GTS] * hardware.FALLBACK_LANES
        rate = min(lanes, hardware.SOCKETS_BYTES_PER_S["GenuineIntel"]) if crosses else lanes
        note = (
            f"Not all GPUs have NVLinks, and the matrix does not tell PCI Express' speed: {print_rate(rate)} each way "
            "is NCCL's assumption of PCI Express 3.0"
            + (" and of the way between sockets." if crosses else ".")
        )
    return Cluster(
        workers=workers,
        bandwidth_bytes_per_s=rate,
        latency_s=0.0,
        notes=(note, "Measure it: nccl-tests on this node tells both bandwidth and latency."),
    )


def _matrix(text: str, path: str | pathlib.Path) -> list[list[str]]:
    """Returns what joins each GPU to each GPU, by row."""
    heads: list[str] = []
    rows: dict[str, list[str]] = {}
    for line in text.splitlines():
        words = line.split()
        if not heads and len(words) > 0 and words[0] == "GPU0" and "X" not in words:
            heads = [word for word in words if re.fullmatch(r"GPU\d+", word)]
        elif heads and words and words[0] in heads and words[0] not in rows:
            rows[words[0]] = words[1 : 1 + len(heads)]
    if not heads or list(rows) != heads or any(len(row) != len(heads) for row in rows.values()):
        raise FileError(
            f"{path} holds no whole matrix of GPUs; write it with `nvidia-smi topo -m > FILE` (seen {len(heads)} "
            f"columns and {len(rows)} rows)."
        )
    known = re.compile(rf"X|NV\d{{1,2}}|{'|'.join(PCIE_WORDS)}")
    for name, row in rows.items():
        if wrong := [word for word in row if not known.fullmatch(word)]:
            raise FileError(f"{path}: {wrong[0][:40]!r} in the row of {name} is no connection that is known.")
    return list(rows.values())
