"""How planning is timed: the rows that others read."""

import json
import subprocess
import sys

from tightwire.bench.planner import cases


def test_a_case_prints_its_row() -> None:
    asked = [sys.executable, "-m", "tightwire.bench.planner", "bsp", "1024"]
    ended = subprocess.run(asked, capture_output=True, text=True, check=True)
    row = json.loads(ended.stdout)
    assert {"name", "workers", "candidates", "seconds", "peak_bytes"} <= set(row)
    assert (row["name"], row["workers"], row["candidates"]) == ("bsp", 1024, 1)
    assert row["peak_bytes"] < 10**9


def test_both_promises_have_cases() -> None:
    assert {workers for _, workers in cases()} >= {8, 1024}
