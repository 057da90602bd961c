"""The whole way: a lab, real processes, a file that the planner reads."""

import json
import pathlib
import subprocess
import sys

import pytest

from tightwire.cluster import Cluster

RATE_BYTES_PER_S = 12.5e6


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tightwire", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_lab_is_found_to_be_what_it_is(tmp_path: pathlib.Path) -> None:
    out = tmp_path / "cluster.yaml"
    options = ("--workers", "2", "--rate", "100mbit", "--budget", "2", "--programs", "native,ring")
    ended = run("probe", *options, "--out", str(out), "--json")
    assert ended.returncode == 0, ended.stderr
    cluster = Cluster.read(out)
    assert json.loads(ended.stdout.splitlines()[-1])["workers"] == 2
    assert [fit.program for fit in cluster.fits] == ["native", "ring"]
    assert len(cluster.pairs) == 1
    # A loaded machine may be slower than its links, never faster.
    assert 0.2 * RATE_BYTES_PER_S < cluster.bandwidth_bytes_per_s < 1.2 * RATE_BYTES_PER_S


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["probe"], "torchrun"),
        (["probe", "--workers", "0"], "0 workers"),
        (["probe", "--workers", "1"], "one worker has no wire to probe"),
        (["probe", "--workers", "2", "--rate", "0"], "rate"),
        (["probe", "--workers", "2", "--programs", "rnig"], "rnig is no known program"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], says: str) -> None:
    ended = run(*arguments)
    assert ended.returncode == 2
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr
