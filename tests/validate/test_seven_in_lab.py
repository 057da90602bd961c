"""The seven methods in the lab: the same ratios as published, plans of the right sizes, orders compared."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from tightwire.bench import step
from tightwire.bench.step import StepRow
from tightwire.cli.seven_methods import seven_methods
from tightwire.errors import LabError
from tightwire.plan import Plan
from tightwire.schedule import ByteScheduler
from tightwire.validate import seven_report
from tightwire.validate.seven_in_lab import BASE, PLANS, Cell, Experiment, nearest, plans, published
from tightwire.workloads.emulated import shaped_like


def cell_of(steps_s: dict[str, float], ratio: float = 1.0) -> Cell:
    rows = {
        method: StepRow(plan=PLANS[method], step_s=seconds, ratio=seconds, low_s=seconds, high_s=seconds)
        for method, seconds in steps_s.items()
    }
    return Cell(
        model="ResNet-50",
        wire_over_compute=ratio,
        compute_s=1.0,
        bound_s=1.0,
        rows=rows,
        published=nearest("ResNet-50", ratio),
    )


def test_published_cells_have_all_methods_and_the_ratio_of_their_line() -> None:
    cells = published("BERT-Base")
    assert len(cells) == 2 * 3
    assert all(set(cell.samples_per_s) == set(PLANS) for cell in cells)
    slow, fast = (c for c in cells if c.gpus == 16)
    # 440 MB, 15/8 of them over 10 Gb/s, beside 64 samples at 212.8 per second.
    assert slow.wire_over_compute == pytest.approx(440.4e6 * 15 / 8 / 1.25e9 / (64 / 212.8), rel=0.01)
    assert fast.wire_over_compute == pytest.approx(slow.wire_over_compute / 10)
    assert nearest("BERT-Base", 0.1).network == "100Gb-IB-RDMA"
    assert nearest("BERT-Base", 4.0).network == "10GbE-TCP"


def test_plans_are_scaled_to_the_workload() -> None:
    workload = shaped_like("resnet50", 25e6, 1.0)
    asked = plans(workload)
    assert list(asked) == list(PLANS)
    schedule = Plan.parse(asked["ByteScheduler-A2A"]).schedule
    assert isinstance(schedule, ByteScheduler)
    assert schedule.partition_bytes == pytest.approx(1e6, rel=0.01)
    assert schedule.credit_bytes == 4 * schedule.partition_bytes


def test_the_published_order_agrees_with_itself_and_not_with_its_reverse() -> None:
    there = nearest("ResNet-50", 1.0).samples_per_s
    alike = cell_of({method: 1 / samples for method, samples in there.items()})
    assert alike.agreement() == pytest.approx((1.0, 0.0))
    assert alike.speedup(BASE) == alike.published_speedup(BASE) == 1.0
    assert all(here == theirs for here, theirs in map(alike.place, PLANS))
    reverse = cell_of(dict(there))
    rho, regret = reverse.agreement()
    assert rho == pytest.approx(-1.0)
    assert regret == pytest.approx(1 - min(there.values()) / max(there.values()))


def test_the_report_explains_what_moved_and_nothing_else() -> None:
    there = nearest("ResNet-50", 0.6).samples_per_s
    alike = cell_of({method: 1 / samples for method, samples in there.items()}, 0.6)
    assert not [s for s in seven_report.sentences([alike]) if "in place" in s]
    moved = {method: 1 / samples for method, samples in there.items()} | {"ByteScheduler-A2A": 1e-9}
    said = "\n".join(seven_report.sentences([cell_of(moved, 0.6)]))
    assert "ByteScheduler-A2A is in place 1.0 here and 5.0 as published" in said
    assert "no published one" not in said
    assert "1 of 1 cells have no published one" in "\n".join(seven_report.sentences([cell_of(moved, 4.0)]))
    text = seven_report.markdown([alike], "Made by hand.")
    assert "Spearman of the two orders 1.00" in text
    assert all(f"| {method} " in text for method in PLANS)
    json.dumps(seven_report.facts([alike]))


@pytest.mark.parametrize(
    "wrong", [{"models": ("GPT",)}, {"ratios": (0.0,)}, {"ratios": (float("nan"),)}, {"compute_s": 0.0}]
)
def test_what_cannot_be_run_is_refused(wrong: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(LabError):
        Experiment(**wrong)  # type: ignore[arg-type]


def test_results_are_kept_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(bench: step.StepBench, on_row: object) -> tuple[list[StepRow], str]:
        return [
            StepRow(plan=p, step_s=1.0 + i, ratio=1.0, low_s=1.0, high_s=1.0)
            for i, p in enumerate(bench.plans)
        ], ""

    monkeypatch.setattr(step, "measure", measure)
    app = typer.Typer(rich_markup_mode=None)
    app.command()(seven_methods)
    path = tmp_path / "new" / "seven.json"
    result = CliRunner().invoke(
        app, ["--ratios", "1,2", "--models", "BERT-Base", "--out", str(path), "--json"]
    )
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == json.loads(path.read_text())
    kept = json.loads(path.read_text())
    assert [cell["wire_over_compute"] for cell in kept["cells"]] == [1.0, 2.0]
    assert kept["command"].startswith("tightwire")
    assert "1,000 Mb/s" in path.with_suffix(".md").read_text()
