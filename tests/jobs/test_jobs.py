"""Jobs on one network: closed forms, and optima found by trying everything."""

import dataclasses
import itertools
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tightwire.cli.jobs import app
from tightwire.cluster import Cluster, Level
from tightwire.errors import FileError, PlanError
from tightwire.jobs import POLICIES, Job, policy, predict_jobs, read_jobs
from tightwire.jobs.interleave import Circles, affinity_parts, interleave
from tightwire.lab.sharing import as_the_lab_runs
from tightwire.profile import Profile


def job(name: str, compute_s: float, wire_s: float, links: tuple[int, ...] = (0,), **more: float) -> Job:
    return Job(
        name=name,
        compute_s=compute_s,
        ready_s=more.get("ready_s", compute_s),
        bytes_by_link=dict.fromkeys(links, wire_s),
        rates=(1.0,) * 8,
        start_s=more.get("start_s", 0.0),
        workers=(0, 1),
    )


HALVES = [job("a", 0.55, 0.45), job("b", 0.55, 0.45)]


@pytest.mark.parametrize("name", POLICIES)
def test_alone_or_on_other_links_nothing_slows_down(name: str) -> None:
    for jobs in ([HALVES[0]], [HALVES[0], job("b", 0.3, 0.6, links=(1,))]):
        found = predict_jobs(jobs, policy(name))
        assert [x.slowdown for x in found.jobs] == pytest.approx([1.0] * len(jobs))


def test_equal_jobs_that_begin_together() -> None:
    """Fair: both exchanges take twice as long, for ever. In any order: the second waits once, then they alternate."""
    fair = predict_jobs(HALVES, policy("fair"))
    assert [x.step_s for x in fair.jobs] == pytest.approx([0.55 + 2 * 0.45] * 2)
    for name in ("first-come", "intensity", "shortest", "coflow", "echelon", "interleaved"):
        found = predict_jobs(HALVES, policy(name))
        assert found.worst_slowdown == pytest.approx(1.0, abs=0.01), name


def test_tcp_lets_equal_jobs_drift_apart() -> None:
    """Who begins first keeps more of the line and ends earlier: with share s, δ' = w(2 − 1/s) + δ(1/s − 1), up to w."""
    found = predict_jobs(HALVES, policy("tcp"), steps=8)
    share = policy("tcp").first_share
    offset_s = 0.0
    for a, b in itertools.islice(zip(found.jobs[0].steps, found.jobs[1].steps, strict=False), 4):
        assert b[0] - a[0] == pytest.approx(offset_s)
        offset_s = 0.45 * (2 - 1 / share) + offset_s * (1 / share - 1)
    assert predict_jobs(HALVES, policy("tcp")).worst_slowdown == pytest.approx(1.0, abs=0.01)
    assert as_the_lab_runs(HALVES, "tcp", 12).worst_slowdown == pytest.approx(1.04, abs=0.04)


def test_a_link_cannot_carry_more_than_its_rate() -> None:
    """Three jobs of 0.45 need 1.35 of a second: no order gives a mean step below that."""
    jobs = [job(name, 0.55, 0.45) for name in "abc"]
    for name in POLICIES:
        found = predict_jobs(jobs, policy(name), steps=90)
        assert sum(0.45 / x.step_s for x in found.jobs) <= 1 + 1e-6, name
    assert "No shifts keep all exchanges apart" in predict_jobs(jobs, policy("interleaved")).why


def test_intensity_serves_the_job_that_computes_more_per_byte() -> None:
    large, urgent = job("large", 0.2, 0.8), job("urgent", 0.4, 0.1)
    found = predict_jobs([large, urgent], policy("intensity"))
    assert {x.name: x.priority for x in found.jobs} == {"large": 1, "urgent": 0}
    assert found.jobs[1].slowdown == pytest.approx(1.0)
    assert predict_jobs([large, urgent], policy("fair")).jobs[1].slowdown > 1.1


def test_overlapped_exchanges_slow_nobody_until_they_are_longer_than_compute() -> None:
    """Ready early, an exchange of twice its length still ends within compute."""
    jobs = [job(name, 1.0, 0.3, ready_s=0.4) for name in "ab"]
    assert predict_jobs(jobs, policy("fair")).worst_slowdown == pytest.approx(1.0)
    longer = [job(name, 1.0, 0.5, ready_s=0.4) for name in "ab"]
    assert predict_jobs(longer, policy("fair")).jobs[0].step_s == pytest.approx(0.4 + 2 * 0.5)


def test_shifts_are_as_good_as_the_best_of_all() -> None:
    """Three jobs over two links, all turns on a coarse circle tried."""
    jobs = [job("a", 0.7, 0.3), job("b", 0.6, 0.4, links=(0, 1)), job("c", 0.5, 0.5, links=(1,))]
    circles = Circles(tuple(jobs))
    coarse = range(0, circles.length, 8)
    best = min(circles.excess((0, x, y)) for x, y in itertools.product(coarse, coarse))
    found = interleave(jobs)
    shifts = [round(found.shift_s[x.name] / circles.tick_s) for x in jobs]
    assert circles.excess(shifts) <= best + 1e-6
    assert found.fits
    assert predict_jobs(jobs, policy("interleaved")).worst_slowdown == pytest.approx(1.0, abs=0.02)


def test_periods_that_differ_meet_on_their_common_circle() -> None:
    """A job with half the other's period fits into both of its gaps, or into none."""
    jobs = [job("slow", 1.6, 0.4), job("fast", 0.7, 0.3)]
    shifts = interleave(jobs)
    assert shifts.fits
    assert shifts.period_s == pytest.approx({"slow": 2.0, "fast": 1.0})  # each keeps its own
    assert not interleave([job("slow", 0.8, 1.2), job("fast", 0.7, 0.3)]).fits


def test_jobs_that_share_no_link_are_turned_apart() -> None:
    jobs = [
        job("a", 1, 1),
        job("b", 1, 1, links=(1,)),
        job("c", 1, 1, links=(1, 2)),
        job("d", 1, 1, links=(2,)),
    ]
    assert [[x.name for x in part] for part in affinity_parts(jobs)] == [["a"], ["b", "c", "d"]]


def write(folder: Path, **changes: object) -> Path:
    cluster = Cluster.of_levels(
        Level(name="node", workers=2, bandwidth_bytes_per_s=1e9),
        Level(name="all", workers=4, bandwidth_bytes_per_s=1e8),
    )
    cluster.write(folder / "cluster.yaml")
    entries = [
        {"name": "large", "workers": [0, 2], "compute_s": 0.2, "exchange_bytes": 40_000_000},
        {"name": "urgent", "workers": [1, 3], "compute_s": 0.2, "exchange_bytes": 2_000_000},
    ]
    entries[1] |= changes
    (folder / "jobs.yaml").write_text(json.dumps({"cluster": "cluster.yaml", "jobs": entries}))
    return folder / "jobs.yaml"


def test_a_file_of_jobs_as_json_and_picture(tmp_path: Path) -> None:
    built, _ = read_jobs(write(tmp_path))
    # Two workers' ring sends the buffer once each way over the node's line of 0.1 GB/s.
    assert built[0].wire_s == pytest.approx(0.4)
    assert built[0].alone_s == pytest.approx(0.6)
    asked = [str(tmp_path / "jobs.yaml"), "--plot", str(tmp_path / "p.html")]
    done = CliRunner().invoke(app, [*asked, "--json"], catch_exceptions=False)
    content = json.loads(done.stdout.splitlines()[-1])
    assert [p["policy"] for p in content["policies"]] == list(POLICIES)
    assert {"name", "step_s", "alone_s", "slowdown"} <= set(content["policies"][0]["jobs"][0])
    assert (tmp_path / "p.html").stat().st_size
    assert "in the mean" in CliRunner().invoke(app, asked, catch_exceptions=False).stdout


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"workers": [1, 9]}, "urgent does not fit: worker 9 is none of the cluster's 4"),
        ({"workers": [2, 3]}, "large and urgent both claim worker 2"),
        ({"name": "large"}, "different names"),
        ({"compute_s": None}, "write compute_s and exchange_bytes, or a profile"),
        ({"exchange_bytes": None}, "exchange_bytes is missing"),
        ({"workers": []}, "one or more different ranks"),
        ({"colour": 1}, "colour"),
        ({"workers": [1], "compute_s": 0.0}, "urgent: its steps take no time"),
    ],
)
def test_jobs_that_do_not_fit_are_refused(tmp_path: Path, changes: dict[str, object], complaint: str) -> None:
    with pytest.raises(FileError, match=complaint):
        read_jobs(write(tmp_path, **changes))


def test_plans_and_policies_that_are_not_known(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="no all-reduce of messages"):
        read_jobs(write(tmp_path, plan="bsp/ps"))
    for plan in ("local:8", "diloco:64/allreduce/int4+ef", "delayed:1"):  # not as if each step exchanged
        with pytest.raises(PlanError, match=r"urgent: a step under .* Write a whole round as one step"):
            read_jobs(write(tmp_path, plan=plan))
    with pytest.raises(PlanError, match="no known network policy; known: fair, first-come"):
        policy("random")


def test_compression_shrinks_what_crosses_the_links(tmp_path: Path) -> None:
    exact, _ = read_jobs(write(tmp_path))
    half, _ = read_jobs(write(tmp_path, plan="bsp/allreduce:ring/bf16"))
    assert half[1].wire_s == pytest.approx(exact[1].wire_s / 2, rel=1e-3)
    assert dataclasses.replace(half[1], bytes_by_link={}).wire_s == 0.0


def test_values_of_a_profile_are_as_wide_as_it_says(tmp_path: Path) -> None:
    """A codec's messages follow from how many values there are, which are half as wide in bfloat16."""

    def wire_s(itemsize: int) -> float:
        profile = Profile.uniform(layers=2, numel_per_layer=10**6, forward_s=0.1, backward_s=0.2)
        parameters = tuple(dataclasses.replace(p, itemsize=itemsize) for p in profile.parameters)
        dataclasses.replace(profile, parameters=parameters).write(tmp_path / "p.yaml")
        told = {"profile": "p.yaml", "compute_s": None, "exchange_bytes": None}
        built, _ = read_jobs(write(tmp_path, plan="bsp/allreduce/int8+ef", **told))
        return built[1].wire_s

    assert wire_s(2) == pytest.approx(wire_s(4), rel=0.01)
