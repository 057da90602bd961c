"""What the sync bench makes of what its workers saw; how fast anything is, it only prints."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from tightwire.bench.step import uniform
from tightwire.bench.sync import Bench, Passed, summary
from tightwire.cli.bench import app
from tightwire.errors import PlanError

WHOLE, STREAMED = "diloco:8", "diloco:8/allreduce/none/streaming:4"


def bench(plans: tuple[str, ...] = ("ddp", WHOLE, STREAMED), rounds: int = 2) -> Bench:
    return Bench(workers=2, rate_bytes_per_s=1e8, workload=uniform(4, 400, 0.1), plans=plans, rounds=rounds)


def test_windows_lie_between_fragments() -> None:
    assert bench().window == 2
    assert bench().reference == WHOLE
    assert bench(("ddp", WHOLE)).window == 8


def test_the_peak_and_the_jitter_are_the_slowest_workers() -> None:
    steps_s = (0.1,) * 99 + (0.3,)
    one = Passed(steps_s=steps_s, sent_bytes=(0, 10, 0, 0) * 25)
    two = Passed(steps_s=steps_s[::-1], sent_bytes=(0, 10, 2, 0) * 25)
    row = summary(bench(), STREAMED, [one, two], 48)
    assert row.peak_bytes == 12
    assert row.ratio == pytest.approx(0.25)
    assert row.bound == pytest.approx(0.3)
    assert row.needed_bytes_per_s == pytest.approx(12 / 0.2)
    assert row.p50_s == 0.1
    assert row.p99_s == 0.3
    assert row.jitter == pytest.approx(3.0)


@pytest.mark.parametrize("asked", [{"rounds": 0}, {"plans": ("ddp",)}, {"plans": ("diloco:0",)}])
def test_what_cannot_be_measured(asked: dict[str, object]) -> None:
    with pytest.raises(PlanError):
        bench(**asked)  # type: ignore[arg-type]
    result = CliRunner().invoke(app, ["sync", "--plans", "ddp"])
    assert result.exit_code == 2
    assert "hold against" in result.stderr
