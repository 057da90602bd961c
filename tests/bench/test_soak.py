"""Long runs: which there are, what is sampled, and when something has grown."""

from __future__ import annotations

from dataclasses import replace

from tightwire.bench.soak import SAMPLES, SLACK_BYTES, Held, Soak, SoakRow, soaks, work


def row(**grown: int) -> SoakRow:
    middle = {"resident_bytes": 1000, "objects": 100, "descriptors": 10, "threads": 3, "groups": 0}
    end = {name: value + grown.get(name, 0) for name, value in middle.items()}
    soak = Soak(kind="steps", plan="bsp", times=1000, workers=2)
    return SoakRow(soak=soak, middle=Held(**middle), end=Held(**end))


def test_what_grows_is_told() -> None:
    assert row().is_flat
    assert row(resident_bytes=4000).bytes_each == 8
    assert not row(resident_bytes=SLACK_BYTES + 1).is_flat
    assert not any(row(**{what: 1}).is_flat for what in ("descriptors", "threads"))
    assert not row(objects=500).is_flat
    grown = row(resident_bytes=SLACK_BYTES + 1000, groups=4)
    assert not grown.is_flat
    assert replace(grown, stock_bytes=250).is_flat  # as stock groups would


def test_every_run_that_is_asked_for() -> None:
    runs = soaks(["bsp", "asp/ps:servers=1"], steps=9, attaches=0, changes=5, workers=2)
    assert [(run.kind, run.plan, run.times, run.workers) for run in runs] == [
        ("steps", "bsp", 9, 2),
        ("steps", "asp/ps:servers=1", 9, 3),
        ("changes", "", 5, 2),
    ]


def test_samples() -> None:
    held, _ = work(Soak(kind="steps", plan="bsp", times=20, workers=1))
    assert len(held) == SAMPLES
    assert held[-1].descriptors == held[4].descriptors
    assert held[-1].objects - held[4].objects < 20
