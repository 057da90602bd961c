"""Files that somebody or something damaged, for everything that reads files: mutations of small valid ones.

    python -m tests.fuzzing 100000

tries so many and prints what did not end in a value or in one sentence within five seconds of processor time, and
each reader's slowest. The suite tries a few
hundred (test_fuzzing.py).
"""

from __future__ import annotations

import gzip
import json
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.test_infragraph import FILE as INFRAGRAPH
from tests.cluster.test_nccl_ras import FOUR
from tests.cluster.test_nccl_ras import report as report_of_ras
from tests.cluster.test_nccl_tests import table
from tests.cluster.test_nccl_topology import MESH, NVLINK, gpu, nic
from tests.cluster.test_sources import record
from tests.profile.test_chakra import chakra
from tests.profile.test_traces_of_others import call, two_in_turns, written
from tightwire.cluster import Cluster, Level
from tightwire.cluster.imports import (
    from_infragraph,
    from_nccl_inspector,
    from_nccl_ras,
    from_nccl_tests,
    from_nccl_topology,
    from_nvidia_smi,
)
from tightwire.errors import TightwireError
from tightwire.plan import PlanFile
from tightwire.profile import Profile
from tightwire.profile.traces import cluster_of_chakra, cluster_of_traces, profile_of_trace

MOST_S = 5.0
Reader = Callable[[Path], object]

READERS: Mapping[str, Reader] = {
    "cluster file": Cluster.read,
    "profile file": Profile.read,
    "plan file": PlanFile.read,
    "nccl-tests": from_nccl_tests,
    "nccl-tests -J": from_nccl_tests,
    "nccl-topology": lambda path: from_nccl_topology(path, 3),
    "nvidia-smi": from_nvidia_smi,
    "nccl-inspector": lambda path: from_nccl_inspector([path]),
    "nccl-ras": from_nccl_ras,
    "infragraph": from_infragraph,
    "trace": profile_of_trace,
    "chakra": lambda path: cluster_of_chakra([path, path]),
    "traces of two ranks": lambda path: cluster_of_traces([path, path]),
}
# Numbers and words that have broken readers before, here or elsewhere.
ODD = (
    "0", "-1", "1e308", "1e-320", "nan", "inf", "NaN", "N/A", "null", "true", "[]", "{}", "''", '"', "9" * 20,
    "9" * 400, "1.8e+07", "\\u0000", "é", "&a", "*a", "!!python/object:os.system", "\t", "-", "#", ":", "<", ">",
    "&lt;", "../../x", "%s", "{0}", "1_000", "0x10", "١٢", "2001-99-99", "~", "?", "|", "---", "[[[[[[[[", "}}}}",
)  # fmt: skip


def seeds(folder: Path) -> dict[str, bytes]:
    """Returns one small valid file for each reader."""
    levels = Cluster.of_levels(
        Level(name="node", workers=2, bandwidth_bytes_per_s=1e11),
        Level(name="cluster", workers=4, bandwidth_bytes_per_s=1e10),
    )
    profile = Profile.uniform(layers=3, numel_per_layer=10, forward_s=0.1, backward_s=0.2)
    files = {
        "cluster file": levels,
        "profile file": profile,
        "plan file": PlanFile(plan="bsp", why=("fast",)),
    }
    for name, value in files.items():
        value.write(folder / name)
    trace = written(two_in_turns, folder / "trace")
    us = {2**n: 10.0 + 2**n / 1e5 for n in range(20, 30)}
    rates = {size: size / us[size] / 1e3 for size in us}
    results = [
        {
            "size": n,
            "out_of_place": {"time": us[n], "alg_bw": rates[n], "bus_bw": 1.75 * rates[n], "nwrong": 0},
        }
        for n in us
    ]
    devices = [{"rank": rank, "hostname": "a", "device": rank} for rank in range(8)]
    report = {"args": ["all_reduce_perf"], "config": {"devices": devices}, "results": results}
    topology = gpu(NVLINK) * 2 + gpu(width="0") + nic("200000", "10000")
    return {
        **{name: (folder / name).read_bytes() for name in files},
        "nccl-tests": "\n".join(table()).encode(),
        "nccl-tests -J": json.dumps(report).encode(),
        "nccl-topology": f'<system version="1"><cpu host_hash="1">{topology}</cpu></system>'.encode(),
        "nvidia-smi": MESH.encode(),
        "nccl-inspector": "\n".join(record(4, 0, n, 1e6 * n, 50.0 + n) for n in range(1, 5)).encode(),
        "nccl-ras": json.dumps(report_of_ras(FOUR)).encode(),
        "infragraph": yaml.safe_dump(INFRAGRAPH).encode(),
        "trace": trace.read_bytes(),
        "chakra": chakra([(10**n, 30 + 10**n // 1000) for n in range(3, 8)]),
        "traces of two ranks": json.dumps([call("0", 2, 10**n, 30.0 + 10**n) for n in range(3, 7)]).encode(),
    }


def mutated(data: bytes, draw: random.Random) -> bytes:
    """Returns the data with one to four changes."""
    for _ in range(draw.choice((1, 1, 2, 4))):
        data = draw.choice(CHANGES)(data, draw)
    return data


def _word(data: bytes, draw: random.Random) -> bytes:
    """Replaces a word or a number, so that most files stay well formed."""
    text = data.decode("utf-8", "replace")
    places = [
        i for i, letter in enumerate(text) if letter.isalnum() and (i == 0 or not text[i - 1].isalnum())
    ]
    if not places:
        return data
    start = draw.choice(places)
    end = start
    while end < len(text) and (text[end].isalnum() or text[end] in "._+-"):
        end += 1
    return (text[:start] + draw.choice(ODD) + text[end:]).encode("utf-8", "replace")


def _flip(data: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(data)) if data else 0
    return data[:place] + bytes([draw.randrange(256)]) + data[place + 1 :]


def _cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data) + 1)]


def _without(data: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(data) + 1)
    return data[:start] + data[start + draw.choice((1, 10, 200)) :]


def _twice(data: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(data) + 1)
    piece = data[start : start + draw.choice((1, 20, 300))]
    return data[:start] + piece * draw.choice((2, 3, 50)) + data[start:]


def _odd(data: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(data) + 1)
    return data[:start] + draw.choice(ODD).encode() * draw.choice((1, 1, 1000)) + data[start:]


def _packed(data: bytes, draw: random.Random) -> bytes:
    return gzip.compress(data, mtime=0)


def _widened(data: bytes, draw: random.Random) -> bytes:
    return data.decode("utf-8", "replace").encode("utf-16")


CHANGES = (_word, _word, _word, _word, _flip, _cut, _without, _twice, _odd, _packed, _widened)


def faults(
    tries: int, seed: int, folder: Path, took: dict[str, float] | None = None
) -> Iterator[tuple[str, bytes, str]]:
    """Yields the reader, the file and what happened, for each that did not end as it should.

    Args:
        tries: how many.
        seed: of what is drawn.
        folder: for the files.
        took: is given the longest processor time of each reader, in seconds.
    """
    draw = random.Random(seed)
    valid = seeds(folder)
    path = folder / "mutated"
    for number in range(tries):
        name = list(READERS)[number % len(READERS)]
        data = mutated(valid[name], draw) if number >= len(READERS) else valid[name]
        path.write_bytes(data)
        began_s = time.process_time()  # a busy machine makes no fault
        what = _outcome(READERS[name], path, must_read=number < len(READERS))
        took_s = time.process_time() - began_s
        if took is not None:
            took[name] = max(took_s, took.get(name, 0.0))
        if what is None and took_s > MOST_S:
            what = f"took {took_s:.1f} s"
        if what is not None:
            yield name, data, what


def _outcome(read: Reader, path: Path, must_read: bool) -> str | None:
    try:
        value: Any = read(path)
        return None if value is not None else "nothing was read"
    except TightwireError as error:
        if must_read:
            return f"a valid file is refused: {error}"
        said = str(error)
        if "\n" in said or len(said) > 1500 or not said:
            return f"no sentence: {said[:300]!r}"
        return None
    except Exception:
        return traceback.format_exc(limit=-4)


def main() -> None:
    """Tries as many as asked, and keeps what failed."""
    tries, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    began_s, failed = time.perf_counter(), 0
    took: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, data, what in faults(tries, seed, Path(folder), took):
            failed += 1
            print(f"{name}: {what}\n  {data[:2000]!r}\n", flush=True)
    took_s = time.perf_counter() - began_s
    print("slowest:", ", ".join(f"{name} {seconds:.2f} s" for name, seconds in took.items()))
    print(f"{tries} files, {failed} faults, {took_s:.0f} s ({1e3 * took_s / tries:.1f} ms each)")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
