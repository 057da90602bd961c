"""What the sync bench makes of what its workers saw; how fast anything is, it only prints."""

from __future__ import annotations

import pytest

from tests.command_line import refused
from tightwire.bench.sync import Passed, SyncBench, summary
from tightwire.errors import PlanError
from tightwire.workloads.emulated import uniform

WHOLE, STREAMED = "diloco:8", "diloco:8/allreduce/none/streaming:4"


def bench(plans: tuple[str, ...] = ("ddp", WHOLE, STREAMED), rounds: int = 2) -> SyncBench:
    return SyncBench(
        workers=2, rate_bytes_per_s=1e8, workload=uniform(4, 400, 0.1), plans=plans, rounds=rounds
    )


def test_windows_lie_between_fragments() -> None:
    assert bench().window == 2
    assert bench().reference == WHOLE
    assert bench(("ddp", WHOLE)).window == 8


def test_the_peak_is_the_busiest_workers_and_the_jitter_the_lasts() -> None:
    last = (*(0.1 * step for step in range(99)), 10.1, 10.2)  # one step of 0.3 s, the others of 0.1 s
    early = tuple(end_s - 0.05 * (step % 3) for step, end_s in enumerate(last))  # waits for it now and then
    one = Passed(ends_s=early, sent_bytes=(0, 10, 0, 0) * 25)
    two = Passed(ends_s=last, sent_bytes=(0, 10, 2, 0) * 25)
    row = summary(bench(), STREAMED, [one, two], 48)
    assert row.peak_bytes == 12
    assert row.ratio == pytest.approx(0.25)
    assert row.bound == pytest.approx(0.3)
    assert row.needed_bytes_per_s == pytest.approx(12 / 0.2)
    assert row.p50_s == pytest.approx(0.1)
    assert row.p99_s == pytest.approx(0.1)
    assert row.jitter == pytest.approx(1.0)
    assert row.steps_per_s == pytest.approx(100 / 10.2)


@pytest.mark.parametrize("asked", [{"rounds": 0}, {"plans": ("ddp",)}, {"plans": ("diloco:0",)}])
def test_what_cannot_be_measured(asked: dict[str, object]) -> None:
    with pytest.raises(PlanError):
        bench(**asked)  # type: ignore[arg-type]
    assert "hold against" in refused("bench", "sync", "--plans", "ddp")
