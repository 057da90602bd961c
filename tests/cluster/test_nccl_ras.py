"""NCCL's RAS: the shape of a job, who is missing and who is behind; speeds are labelled as guesses."""

import json
from pathlib import Path
from typing import Any

import pytest

from tightwire.cluster import Cluster
from tightwire.cluster.imports import from_nccl_ras
from tightwire.errors import FileError


def rank(number: int, host: str, begun: int = 7, error: int = 0) -> dict[str, Any]:
    status = {"init_state": 0, "async_error": error, "finalize_called": False}
    counts = {"Broadcast": 0, "AllReduce": begun}
    return {"rank": number, "host": host, "pid": 100 + number, "cuda_dev": number % 2, "nvml_dev": number % 2,
            "status": status, "collective_counts": counts}  # fmt: skip


def lost(number: int, host: str) -> dict[str, Any]:
    return {**rank(number, host), "status": {"unresponsive": True, "considered_dead": True}}


def report(ranks: list[dict[str, Any]], missing: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    missing = missing or []
    whole = {"hash": "0x1", "size": len(ranks) + len(missing), "ranks_count": len(ranks), "ranks": ranks,
             "missing_ranks_count": len(missing), "missing_ranks": missing}  # fmt: skip
    pair = {"hash": "0x2", "size": 2, "ranks": ranks[:2], "missing_ranks": []}
    return {"nccl_version": "2.28.3", "communicators_count": 2, "communicators": [pair, whole], "ras": {}}


def read(tmp_path: Path, content: object) -> Cluster:
    path = tmp_path / "ras.json"
    path.write_text(json.dumps(content))
    return from_nccl_ras(path)


FOUR = [rank(number, f"10.0.0.{number // 2}") for number in range(4)]


def test_nodes_and_ranks(tmp_path: Path) -> None:
    cluster = read(tmp_path, report(FOUR))
    assert [(level.name, level.workers) for level in cluster.levels] == [("node", 2), ("cluster", 4)]
    assert "are guesses" in cluster.notes[0]
    assert cluster.notes[1:] == ("Other communicators are left out: 1 of 2 ranks.",)
    assert [level.name for level in read(tmp_path, report(FOUR[:2])).levels] == ["node"]
    apart = read(tmp_path, report([rank(number, f"10.0.0.{number}") for number in range(3)]))
    assert [(level.name, level.workers) for level in apart.levels] == [("cluster", 3)]


def test_who_is_missing_failed_or_behind_is_named(tmp_path: Path) -> None:
    cluster = read(
        tmp_path, report([*FOUR[:2], rank(2, "10.0.0.1", begun=6, error=3)], [lost(3, "10.0.0.1")])
    )
    said = " ".join(cluster.notes)
    assert cluster.workers == 4
    assert "did not answer: rank 3 (process 103 on 10.0.0.1), considered dead" in said
    assert "report an error of NCCL: rank 2" in said
    assert "unlike numbers of AllReduce: most 7, rank 2 (process 102 on 10.0.0.1) began 6" in said
    uneven = read(tmp_path, report([*FOUR, rank(4, "10.0.0.9")]))
    assert "not spread evenly" in " ".join(uneven.notes)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"communicators": []}, "has 0 ranks"),
        ({"hello": 1}, "no report of NCCL RAS"),
        ([1], "no report of NCCL RAS"),
        (report([{"rank": "many"}] * 3), "no report of NCCL RAS"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path: Path, content: object, says: str) -> None:
    with pytest.raises(FileError, match=says):
        read(tmp_path, content)
