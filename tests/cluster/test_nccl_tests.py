"""nccl-tests in every version's clothes: the same times, the same cluster; what is no measurement is refused."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tightwire.cluster import Cluster
from tightwire.cluster.imports import from_nccl_tests
from tightwire.errors import FileError

SIZES = [2**power for power in range(20, 34)]
A100 = "NVIDIA A100-SXM4-80GB"


def seconds(size: int) -> float:
    return 40e-6 + size / 100e9


def device(rank: int, host: str = "a", title: str = A100, pid: int | None = None) -> str:
    pid = 100 + rank if pid is None else pid
    return f"#  Rank {rank:2} Group  0 Pid {pid:6} on {host:>10} device {rank:2} [0x07] {title}"


def row(
    size: int,
    ranks: int,
    *,
    root: str = "      -1",
    wrong: str = "0",
    kind: str = "all_reduce",
    redop: str = "sum",
) -> str:
    us, share = (
        seconds(size) * 1e6,
        {"all_reduce": 2.0, "all_gather": 1.0, "reduce_scatter": 1.0}.get(kind, 1.0),
    )
    share *= (ranks - 1) / ranks
    shown = f"{us:8.2f}" if us < 1e4 else f"{us:8.0f}" if us < 1e6 else f"{us:8.1e}"
    half = f"{shown} {size / us / 1e3:7.2f} {share * size / us / 1e3:7.2f} {wrong:>6}"
    return f"{size:12} {size // 4:13} {'float':>9} {redop:>7}{root} {half} {half}"


HEADER = "#       size  count  type  redop  root" + "  time  algbw  busbw #wrong" * 2
BEGIN = "# nThread 1 nGpus 1 minBytes 1048576 maxBytes 8589934592 step: 2(factor)\n#\n# Using devices"
END = "# Out of bounds values : 0 OK\n# Avg bus bandwidth    : 100.0"


def table(ranks: int = 8, devices: Sequence[str] | None = None, **about: str) -> list[str]:
    devices = [device(rank) for rank in range(ranks)] if devices is None else devices
    return [BEGIN, *devices, HEADER, *(row(size, ranks, **about) for size in SIZES), END]


def read(tmp_path: Path, lines: Sequence[str]) -> Cluster:
    path = tmp_path / "nccl.txt"
    path.write_text("\n".join(lines))
    return from_nccl_tests(path)


def require_right(cluster: Cluster, ranks: int = 8) -> None:
    (fit,) = cluster.fits
    assert cluster.workers == ranks
    assert fit.seconds(2 * (ranks - 1) / ranks * 2**25) == pytest.approx(seconds(2**25), rel=0.02)
    assert fit.residual < 0.02


OLD = [
    *(device(rank).replace("Group  0 ", "") for rank in range(8)),
    HEADER.replace("root", "").replace("#wrong", "error"),
    *(row(size, 8, root="", wrong="2e-07") for size in SIZES),
]
MS = [
    *(f"#  Rank {rank:2} uses device {rank:2} [0x07] Tesla V100" for rank in range(8)),
    "#      bytes             N    type      op     time  algbw  busbw      res     time  algbw  busbw      res",
    *(
        f"{size:12} {size // 4:12}   float     sum" + 2 * f"  {ms:7.3f}  {gb:5.2f}  {1.75 * gb:5.2f}    1e-06"
        for size in SIZES
        for ms, gb in [(seconds(size) * 1e3, size / seconds(size) / 1e9)]
    ),
    " Out of bounds values : 0 OK",
]
ITERATIONS = [
    *(device(rank) for rank in range(8)),
    "#  size  count  type  redop  root" + "  time  algbw  busbw  #wrong  i_min  i_max  i_p99  i_cv%" * 2,
    *(
        f"{size} 1 float sum -1" + "     N/A     N/A     N/A     N/A     N/A     N/A     N/A     N/A"
        f" {us:.1f} {gb:.2f} {1.75 * gb:.2f} 0 1.0 2.0 3.0 4.0"
        for size in SIZES
        for us, gb in [(seconds(size) * 1e6, size / seconds(size) / 1e9)]
    ),
]
GROUPS = [device(rank).replace("Group  0", f"Group {rank // 8:2}") for rank in range(16)]
NOISE = "worker-0:22:28 [0] NCCL INFO comm 0x55 rank 1 nranks 2 cudaDev 1 busId 200000 - Init COMPLETE"
WAYS = {
    "as it is": table(),
    "before 2.11": OLD,
    "without a header": [line for line in table() if "redop" not in line],
    "mpirun's tags": [f"[1,0]<stdout>:{line}" for line in table()],
    "srun -l": [f" 3: {line}" for line in table()],
    "a pod's name and a time": [f"2026-01-02T03:04:05Z pod/worker-0 {line}" for line in table()],
    "NCCL's own lines": [said for line in table() for said in (line, NOISE)],
    "colours": [f"\x1b[32m{line}\x1b[0m" for line in table()],
    "no device lines": table(devices=()),
    "only the last device line": table(devices=(device(7),)),
    "not validated": table(wrong="N/A"),
    "before 2.0, in ms": MS,
    "single iterations, in place alone": ITERATIONS,
    "a time for each line": [f"{line}   2026-01-02 03:04:05" for line in table()],
    "as a container's engine keeps it": [
        json.dumps({"log": f"{line}\n", "stream": "stdout", "time": "2026-01-02T03:04:05Z"}) for line in table()
    ],
    "stern's tags": [f"launcher-x7k mpi {line}" for line in table()],
    "an attempt that failed": [BEGIN, *(device(rank, pid=rank + 7) for rank in range(8)), *table()],
    "two groups at once": table(devices=GROUPS),
    "every type": [line for old in table() for line in (old, *([old.replace("float", "bfloat16")] * ("sum" in old)))],
    "two runs": table() + table(),
    "and other tests": [
        "# Collective test starting: all_reduce_perf", *table(),
        "# Collective test starting: all_gather_perf", *table(kind="all_gather", redop="none"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("lines", WAYS.values(), ids=WAYS)
def test_one_table_in_many_clothes(tmp_path: Path, lines: list[str]) -> None:
    require_right(read(tmp_path, lines))


def test_json(tmp_path: Path) -> None:
    def place(size: int) -> dict[str, object]:
        us = seconds(size) * 1e6
        return {"time": us, "alg_bw": size / us / 1e3, "bus_bw": 1.75 * size / us / 1e3, "nwrong": None}

    devices = [
        {
            "rank": rank,
            "group": 0,
            "pid": rank,
            "hostname": f"h{rank // 4}",
            "device": rank % 4,
            "device_info": A100,
        }
        for rank in range(8)
    ]
    results = [{"size": size, "type": "float", "redop": "sum", "out_of_place": place(size)} for size in SIZES]
    report = {
        "args": ["./build/all_reduce_perf", "-J", "r"],
        "config": {"devices": devices},
        "results": results,
    }
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report))
    cluster = from_nccl_tests(path)
    require_right(cluster)
    assert [level.workers for level in cluster.levels] == [4, 8]
    for broken in ("{", "{}", '{"results": 3}', '{"results": [{"size": "many"}]}'):
        path.write_text(broken)
        with pytest.raises(FileError, match=r"report\.json"):
            from_nccl_tests(path)


def test_hosts_become_levels_and_the_inside_is_a_labelled_guess(tmp_path: Path) -> None:
    two = [device(rank, "ab"[rank // 4]) for rank in range(8)]
    cluster = read(tmp_path, table(devices=two))
    assert [(level.workers, level.name) for level in cluster.levels] == [(4, "node"), (8, "cluster")]
    assert cluster.levels[0].bandwidth_bytes_per_s == 240e9
    assert "nothing was measured" in cluster.notes[0]
    assert not read(tmp_path, table()).notes
    scattered = [device(rank, "ab"[rank % 2]) for rank in range(8)]
    assert not read(tmp_path, table(devices=scattered)).levels


def test_other_collectives_are_converted_or_refused_by_name(tmp_path: Path) -> None:
    named = "# Collective test starting: {}_perf"
    for kind, redop in (("all_gather", "none"), ("reduce_scatter", "sum")):
        cluster = read(tmp_path, [named.format(kind), *table(kind=kind, redop=redop)])
        (fit,) = cluster.fits
        assert (cluster.workers, fit.source) == (8, "prior")
        assert fit.residual >= 0.2
        assert fit.seconds(1.75 * 2**30) == pytest.approx(2 * seconds(2**30), rel=0.02)
        assert kind in cluster.notes[0]
    for kind in ("alltoall", "broadcast", "sendrecv"):
        with pytest.raises(FileError, match=f"measures {kind}"):
            read(tmp_path, [named.format(kind), *table(kind=kind, redop="none")])


def test_nothing_is_left_out_silently(tmp_path: Path) -> None:
    lines = table()
    place = next(i for i, line in enumerate(lines) if line.strip().startswith("1048576"))
    lines[place] = lines[place][:50] + " host:1:1 [0] NCCL INFO cut"
    lines.insert(place, f"{0:12} {0:13}     float     sum      -1     0.10    0.00    0.00      0")
    notes = read(tmp_path, lines).notes
    assert any("1 lines are cut" in note and "1MiB" in note for note in notes)
    assert any("0 bytes" in note for note in notes)


apart = [device(rank, host, pid=pid) for host, pid in (("a", 7), ("b", 8)) for rank in range(4)]


def wrong_in_place(lines: Sequence[str]) -> list[str]:
    return [f"{line[:-1]}3" if line.endswith(" 0") and "float" in line else line for line in lines]


REFUSED = {
    "wrong results in place": (wrong_in_place(table()), "14 sizes have wrong results"),
    "wrong results, nobody knows where": ([*table()[:-1], "# Out of bounds values : 7 FAILED"], "7 results are wrong"),
    "reduce of two, without its name": (table(2, root="       0"), "measures reduce"),
    "broadcast of two": (table(2, root="       0", redop="none"), "measures broadcast, gather or scatter"),
    "shifted columns": (
        [*table()[:10], *(f"{size} 1 float sum -1 {size / 1e4:.1f} 99.00 173.25 0" for size in SIZES)], "contradict"
    ),
    "each its own world": (table(4, devices=apart), r"rank 0 is listed on a .* and on b .*MPI=1"),
    "wrong results": (table(wrong="3"), r"14 sizes have wrong results .*1MiB, 2MiB"),
    "a world of one": (table(1), "a world of one rank"),
    "runs on two clusters": (table(4, devices=apart[:4]) + table(4, devices=apart[4:]), "holds 2 runs"),
    "nothing": (["hello"], "no line of a size"),
    "a size of thousands of digits": (["9" * 5000 + " 1 float sum -1 1.0 1.0 1.0 0"], "no line of a size"),
    "device lines alone": (table()[:9], "no line of a size"),
    "one size": ([*table()[:10], row(2**20, 8)], "two sizes are needed"),
    "processor times": ([line.replace("time", "cputime") for line in table()], "run it without -C"),
    "lines missing": (table(8, devices=[device(rank) for rank in range(3)]), "lines are missing"),
    "too slow to tell ranks": (
        [f"{size:12} 1 float sum -1 {size:8} 0.00 0.00 0" for size in SIZES], "number of ranks is not known"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("lines", "says"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_measurement_is_refused(tmp_path: Path, lines: list[str], says: str) -> None:
    with pytest.raises(FileError, match=says) as caught:
        read(tmp_path, lines)
    assert str(caught.value).startswith(str(tmp_path))


def test_scattered_times_are_said_or_refused(tmp_path: Path) -> None:
    def scattered(by: float) -> list[str]:
        lines = [f"{size:12} 1 float sum -1 {us:.1f} {(gb := size / us / 1e3):.2f} {1.75 * gb:.2f} 0"
                 for i, size in enumerate(SIZES) if (us := seconds(size) * 1e6 * (by if i % 2 else 1.0))]  # fmt: skip
        return [device(rank) for rank in range(8)] + lines

    assert "predictions from this file may be off by as much" in read(tmp_path, scattered(1.4)).notes[-1]
    with pytest.raises(FileError, match="times of several runs are mixed"):
        read(tmp_path, scattered(9.0))
