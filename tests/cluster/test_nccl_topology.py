"""NCCL's topology XML: every word of it read, guessed aloud, or named."""

from pathlib import Path

import pytest

from tightwire.cluster import Cluster
from tightwire.cluster.imports import from_nccl_topology, from_nvidia_smi
from tightwire.errors import FileError

GEN3 = 0.985e9


def gpu(
    inside: str = "", *, speed: str = "8.0 GT/s PCIe", width: str = "16", sm: int = 80, words: str = ""
) -> str:
    return f'<pci busid="1" link_speed="{speed}" link_width="{width}"><gpu sm="{sm}" {words}>{inside}</gpu></pci>'


def nic(*speeds: str, slot: str = 'busid="9" link_speed="16.0 GT/s PCIe" link_width="16"') -> str:
    nets = "".join(f'<net name="m{i}" speed="{speed}" latency="1.5"/>' for i, speed in enumerate(speeds))
    return f"<pci {slot}><nic>{nets}</nic></pci>" if slot else f"<nic>{nets}</nic>"


def read(
    tmp_path: Path, *cpus: str, nodes: int = 1, cpu: str = 'arch="x86_64" vendor="GenuineIntel"'
) -> Cluster:
    path = tmp_path / "topology.xml"
    inside = "".join(
        f'<cpu numaid="{i}" host_hash="0x{i // 2}" {cpu}>{text}</cpu>' for i, text in enumerate(cpus)
    )
    path.write_text(f'<system version="1">{inside}</system>')
    return from_nccl_topology(path, nodes)


NVLINK = '<nvlink target="2" count="12"/>'
RATES = {
    "PCIe 3.0": (gpu(), 16 * GEN3),
    "32 GT/s without decimals": (gpu(speed="32 GT/s"), 16 * 3.938e9),
    "PCIe 6": (gpu(speed="64.0 GT/s PCIe"), 16 * 7.563e9),
    "four lanes": (gpu(width="4"), 4 * GEN3),
    "a narrow switch above": (f'<pci link_speed="8.0 GT/s" link_width="8">{gpu()}</pci>', 8 * GEN3),
    "NVLink": (gpu(NVLINK), 12 * 20e9),
    "NVLink 5": (gpu('<nvlink target="f" count="18"/>', sm=100), 18 * 40.1e9),
    "xGMI": (gpu('<xgmi count="1"/><xgmi count="1"/><xgmi count="1"/>', words='gcn="gfx942"'), 3 * 48e9),
}


@pytest.mark.parametrize(("text", "rate"), RATES.values(), ids=RATES)
def test_what_the_file_says_is_taken(tmp_path: Path, text: str, rate: float) -> None:
    cluster = read(tmp_path, text * 2)
    assert cluster.bandwidth_bytes_per_s == pytest.approx(rate)
    assert not cluster.notes


GUESSES = {
    "width 0": (gpu(width="0", speed="") * 2, 16 * GEN3, "NCCL's guess"),
    "speed Unknown": (gpu(speed="Unknown") * 2, 16 * GEN3, "NCCL's guess"),
    "a speed of tomorrow": (gpu(speed="256.0 GT/s") * 2, 16 * 15.125e9, "taken for 128 GT/s"),
    "an xGMI of tomorrow": (gpu('<xgmi count="2"/>', words='gcn="gfx1300"') * 2, 96e9, "gfx1300"),
    "no compute capability": (
        gpu(NVLINK).replace('sm="80"', "") * 2,
        240e9,
        "compute capability is not in the file",
    ),
    "an unknown word": (gpu(NVLINK + "<warp/>") * 2, 240e9, "<warp>"),
}


@pytest.mark.parametrize(("text", "rate", "says"), GUESSES.values(), ids=GUESSES)
def test_guesses_are_labelled(tmp_path: Path, text: str, rate: float, says: str) -> None:
    cluster = read(tmp_path, text)
    assert cluster.bandwidth_bytes_per_s == pytest.approx(rate)
    assert says in " ".join(cluster.notes)


def test_between_sockets(tmp_path: Path) -> None:
    apart = read(tmp_path, gpu(), gpu())
    assert apart.bandwidth_bytes_per_s == 10e9
    assert "between sockets" in apart.notes[0]
    assert read(tmp_path, gpu(NVLINK), gpu(NVLINK)).bandwidth_bytes_per_s == 240e9


def across(cluster: Cluster) -> float:
    return cluster.levels[-1].bandwidth_bytes_per_s


def test_network_ports(tmp_path: Path) -> None:
    one = read(tmp_path, gpu(NVLINK) * 4 + nic("200000") + nic("200000"), nodes=2)
    assert (one.workers, across(one), one.latency_s) == (8, 50e9, 1.5e-6)
    shared = read(tmp_path, gpu(NVLINK) * 2 + nic("200000", "200000"), nodes=2)
    assert across(shared) == pytest.approx(16 * 1.969e9)
    assert "its lanes carry" in shared.notes[0]
    for speed in ("0", "-1"):
        down = read(tmp_path, gpu(NVLINK) * 2 + nic(speed, "100000"), nodes=2)
        assert across(down) == 12.5e9
        assert "m0 has no speed" in down.notes[0]
    sockets = read(tmp_path, gpu(NVLINK) * 2 + nic("10000", slot=""), nodes=2)
    assert across(sockets) == 1.25e9
    assert "also writes where it does not know" in sockets.notes[0]
    merged = (
        nic("200000", "200000", slot="")
        .replace('m1"', 'm0+m9"')
        .replace("</nic>", '<net name="m9" speed="0"/></nic>')
    )
    assert across(read(tmp_path, gpu(NVLINK) * 2 + merged, nodes=2)) == 25e9
    with pytest.raises(FileError, match="without a network"):
        read(tmp_path, gpu(NVLINK), nodes=2)


def test_fused_hosts(tmp_path: Path) -> None:
    host = gpu('<nvlink target="f" count="18"/>', sm=100) * 2 + nic("400000")
    cluster = read(tmp_path, host, "", host, "", nodes=3)
    assert [(level.name, level.workers) for level in cluster.levels] == [
        ("node", 2),
        ("domain", 4),
        ("cluster", 12),
    ]
    assert across(cluster) == pytest.approx(2 * 16 * 1.969e9)
    assert "2 hosts are fused" in cluster.notes[0]


@pytest.mark.parametrize(
    "text", ['<gpu sm="many"/>', gpu('<nvlink count="-3"/>'), gpu('<nvlink count="1e300"/>'), gpu(width="x")]
)
def test_numbers_that_are_none_are_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(FileError, match="is no number it can have"):
        read(tmp_path, text + gpu(NVLINK).replace("80", "seven"))


MESH = """	GPU0	GPU1	GPU2	NIC0	CPU Affinity
GPU0	 X 	NV2	NV1	PIX	0-3
GPU1	NV2	 X 	NV4	SYS	0-3
GPU2	NV1	NV4	 X 	SYS	4-7
"""


def test_the_matrix_of_nvidia_smi(tmp_path: Path) -> None:
    path = tmp_path / "topo.txt"
    path.write_text(f"\x1b[4m{MESH}\x1b[0m\nLegend:\n  X    = Self\n")
    for reader in (from_nvidia_smi, from_nccl_topology):
        cluster = reader(path)
        assert (cluster.workers, cluster.bandwidth_bytes_per_s) == (3, 3 * 20e9)
        assert "not their generation" in cluster.notes[0]
    heads = "".join(f"\tGPU{i}" for i in range(8))
    rows = "".join(
        f"GPU{i}" + "".join("\tX" if i == j else "\tNV18" for j in range(8)) + "\n" for i in range(8)
    )
    path.write_text(f"{heads}\n{rows}")
    assert from_nvidia_smi(path).bandwidth_bytes_per_s == 18 * 20e9
    path.write_text(MESH.replace("NV1", "SYS").replace("NV2", "SYS").replace("NV4", "PHB"))
    assert from_nvidia_smi(path).bandwidth_bytes_per_s == 10e9
    with pytest.raises(FileError, match="how fast a node's network is"):
        from_nvidia_smi(path, 2)
    for text, says in (
        (MESH[:70], "no whole matrix"),
        ("", "no whole matrix"),
        (MESH.replace("NV4", "WAT"), "'WAT'"),
    ):
        path.write_text(text)
        with pytest.raises(FileError, match=says):
            from_nvidia_smi(path)
