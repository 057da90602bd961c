"""Clusters from known hardware, and from what NVIDIA's tools write."""

import json
from pathlib import Path

import pytest

from tightwire.cluster.imports import SOURCES, from_nccl_inspector, from_nccl_tests, from_nccl_topology
from tightwire.cluster.presets import PRESETS, preset
from tightwire.errors import FileError

TOPOLOGY = """<system version="1"><cpu numaid="0">
  <pci busid="0000:01:00.0" class="0x030200" link_speed="16.0 GT/s PCIe" link_width="16">
    <gpu dev="0" sm="80" rank="0" gdr="1"><nvlink target="0000:03:00.0" count="12" tclass="0x068000"/></gpu>
  </pci>
  <pci busid="0000:02:00.0" class="0x030200" link_speed="16.0 GT/s PCIe" link_width="16">
    <gpu dev="1" sm="80" rank="1" gdr="1"><nvlink target="0000:03:00.0" count="12" tclass="0x068000"/></gpu>
  </pci>
  <nic><net name="mlx5_0" dev="0" speed="200000" port="1" latency="0.5" gdr="1"/></nic>
</cpu></system>"""
NCCL_TESTS = """# nThread 1 nGpus 1 minBytes 8388608 maxBytes 67108864 step: 2(factor)
#  Rank  0 Group  0 Pid   1 on a device  0 [0x07] NVIDIA A100
#  Rank  1 Group  0 Pid   2 on b device  0 [0x0f] NVIDIA A100
#       size         count      type   redop    root     time   algbw   busbw #wrong     time   algbw   busbw #wrong
     8388608       2097152     float     sum      -1     1100    7.63    7.63      0     1101    7.62    7.62      0
    16777216       4194304     float     sum      -1     2100    7.99    7.99      0     2101    7.99    7.99      0
    33554432       8388608     float     sum      -1     4100    8.18    8.18      0     4101    8.18    8.18      0
"""


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("nodes", [1, 3])
def test_known_hardware(name: str, nodes: int) -> None:
    cluster = preset(name, nodes)
    assert cluster.workers == nodes * PRESETS[name].devices == cluster.devices
    if PRESETS[name].devices > 1:
        assert cluster.links is not None
        assert len(cluster.links.workers) == cluster.workers


def test_nccl_topology(tmp_path: Path) -> None:
    path = tmp_path / "topology.xml"
    path.write_text(TOPOLOGY)
    node = from_nccl_topology(path)
    assert (node.workers, node.bandwidth_bytes_per_s) == (2, 12 * 20e9)
    both = from_nccl_topology(path, nodes=4)
    assert (both.workers, both.bandwidth_bytes_per_s, both.latency_s) == (8, 25e9, 0.5e-6)
    path.write_text(TOPOLOGY.replace("net ", "pet "))
    with pytest.raises(FileError, match="without a network"):
        from_nccl_topology(path, nodes=2)
    path.write_text("<system/>")
    with pytest.raises(FileError, match="describes no GPU"):
        from_nccl_topology(path)
    path.write_text("<system")
    with pytest.raises(FileError, match="is no XML"):
        from_nccl_topology(path)


def test_nccl_tests(tmp_path: Path) -> None:
    path = tmp_path / "nccl.txt"
    path.write_text(NCCL_TESTS)
    cluster = from_nccl_tests(path)
    fit = cluster.fit("native")
    assert fit is not None
    assert cluster.workers == 2
    assert fit.alpha_s == pytest.approx(1e-4, rel=1e-3)
    assert 1 / fit.beta_s_per_byte == pytest.approx(8388608 / 1e-3, rel=1e-3)
    with pytest.raises(FileError, match="cannot be read"):
        from_nccl_tests(tmp_path / "missing.txt")


def test_nccl_inspector_counts_who_came_last(tmp_path: Path) -> None:
    waits_us = ([0.0, 500.0], [300.0, 0.0])
    paths = []
    for rank, waits in enumerate(waits_us):
        lines = [
            {
                "header": {"id": "0x1", "rank": rank, "n_ranks": 2, "nnodes": 1},
                "coll_perf": {
                    "coll": "AllReduce",
                    "coll_sn": number,
                    "coll_msg_size_bytes": size,
                    "coll_exec_time_us": 100.0 + size / 1e4 + wait,
                },
            }
            for number, (size, wait) in enumerate(zip((10**6, 10**7), waits, strict=True))
        ]
        paths.append(tmp_path / f"rank{rank}.log")
        paths[-1].write_text("\n".join(map(json.dumps, lines)))
    fit = from_nccl_inspector(paths).fit("native")
    assert fit is not None
    assert fit.alpha_s == pytest.approx(1e-4, rel=1e-6)
    assert 1 / fit.beta_s_per_byte == pytest.approx(1e10, rel=1e-6)
    paths[0].write_text("{}\nno json")
    with pytest.raises(FileError, match="line 2 is no JSON"):
        from_nccl_inspector(paths)
    paths[0].write_text("{}")
    with pytest.raises(FileError, match="did the job communicate"):
        from_nccl_inspector(paths[:1])


def record(ranks: int, rank: int, number: int, size: float, us: float, coll: str = "AllReduce") -> str:
    header = {"id": f"0x{ranks}", "rank": rank, "n_ranks": ranks, "nnodes": 2}
    perf = {"coll": coll, "coll_sn": number, "coll_msg_size_bytes": size, "coll_exec_time_us": us}
    return json.dumps({"header": header, "coll_perf": perf})


def test_nccl_inspector_keeps_communicators_apart(tmp_path: Path) -> None:
    path = tmp_path / "rank0.log"
    wide = [record(4, 0, n, size, 50 + size / 1e3) for n, size in enumerate((1e6, 4e6, 16e6))]
    narrow = [record(2, 0, n, 1e6, 7.0) for n in range(3)]
    path.write_text("\n".join([*wide, *narrow, record(4, 0, 9, 1e6, 5.0, "Broadcast"), '{"header": {}}']))
    cluster = from_nccl_inspector([path])
    assert cluster.workers == 4
    assert [level.workers for level in cluster.levels] == [2, 4]
    assert cluster.fits[0].seconds(1.5e6) == pytest.approx(50e-6 + 1e-3)
    assert [
        words
        for words in ("1 of 4 ranks", "fewer ranks (2)", "Broadcast")
        if words in " ".join(cluster.notes)
    ]
    for text, says in (
        ('{"nccl_version": "2.28", "communicators": []}', "tells who takes part, not how fast"),
        ("[1]", "writes objects"),
        (record(4, 0, 0, 1e6, 5.0).replace('"coll_sn": 0', '"coll_sn": "x"'), "line 1 is no record"),
    ):
        path.write_text(text)
        with pytest.raises(FileError, match=says):
            from_nccl_inspector([path])


def test_a_source_says_what_it_takes(tmp_path: Path) -> None:
    path = tmp_path / "nccl.txt"
    path.write_text(NCCL_TESTS)
    tests = SOURCES["nccl-tests"]
    assert tests.cluster("nccl-tests", [path], 1).workers == 2
    with pytest.raises(FileError, match="writes one file, and 2 were given"):
        tests.cluster("nccl-tests", [path, path], 1)
    with pytest.raises(FileError, match="--nodes 2"):
        tests.cluster("nccl-tests", [path], 2)
