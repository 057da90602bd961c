import dataclasses
import pathlib

import pytest

from tightwire.cluster import Cluster, Fit, Level, Pair
from tightwire.cluster.pieces import CostLine
from tightwire.errors import FileError
from tightwire.profile import Profile
from tightwire.simulate import predict

MEASURED = Cluster(
    workers=4,
    bandwidth_bytes_per_s=25e6,
    latency_s=1e-4,
    fits=(Fit(program="ring", alpha_s=1e-3, beta_s_per_byte=4e-8, residual=0.01),),
    pairs=(Pair(workers=(0, 1), latency_s=1e-4, bandwidth_bytes_per_s=24e6, both_ways_bytes_per_s=23e6),),
)


def test_file_round_trip(tmp_path: pathlib.Path) -> None:
    MEASURED.write(tmp_path / "cluster.yaml")
    assert Cluster.read(tmp_path / "cluster.yaml") == MEASURED


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("workers", 0),
        ("workers", -1),
        ("bandwidth_bytes_per_s", 0.0),
        ("bandwidth_bytes_per_s", -1.0),
        ("bandwidth_bytes_per_s", float("nan")),
        ("bandwidth_bytes_per_s", float("inf")),
        ("latency_s", -1e-6),
        ("latency_s", 100.0),
    ],
)
def test_absurd_values_are_refused_by_field(field: str, value: float) -> None:
    good = {"workers": 4, "bandwidth_bytes_per_s": 1e8, "latency_s": 1e-4}
    with pytest.raises(FileError, match=field):
        Cluster(**(good | {field: value})).require_plausible()


def test_a_file_may_hold_what_is_sold_and_a_what_if_more(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "cluster.yaml"
    node = Level(name="node", workers=8, bandwidth_bytes_per_s=900e9)
    rack = Level(name="rack", workers=16, bandwidth_bytes_per_s=14e12)
    for cluster in (Cluster.uniform(8, 480e9, 1e-5), Cluster.of_levels(node, rack)):
        cluster.write(path)
        assert Cluster.read(path) == cluster
        cluster.scaled(1e3).write(path)
        with pytest.raises(FileError, match=r"bandwidth_bytes_per_s: .* the unit is bytes per second"):
            Cluster.read(path)


LINES = (
    CostLine(from_bytes=0.0, alpha_s=1e-5, beta_s_per_byte=4e-10),
    CostLine(from_bytes=1e5, alpha_s=3e-5, beta_s_per_byte=1e-11),
)


def test_a_fit_of_several_lines_goes_by_size(tmp_path: pathlib.Path) -> None:
    fit = Fit.of("native", LINES, 0.02)
    assert (fit.alpha_s, fit.beta_s_per_byte) == (1e-5, 1e-11)
    assert fit.seconds(0) == 1e-5
    assert fit.seconds(1e4) == pytest.approx(1.4e-5)
    assert fit.seconds(1e6) == pytest.approx(4e-5)
    assert fit.scaled(2.0).seconds(1e6) == pytest.approx(3.5e-5)
    assert Fit.of("native", LINES[:1], 0.0).lines == ()
    with pytest.raises(FileError, match="the first begins at 0"):
        dataclasses.replace(fit, lines=LINES[1:])
    cluster = dataclasses.replace(MEASURED, fits=(fit,), notes=("one guess",))
    cluster.write(tmp_path / "cluster.yaml")
    assert Cluster.read(tmp_path / "cluster.yaml") == cluster


def test_an_exchange_is_priced_by_the_line_of_its_size() -> None:
    cluster = Cluster(
        workers=4, bandwidth_bytes_per_s=1e11, latency_s=1e-5, fits=(Fit.of("native", LINES, 0.0),)
    )
    for numel in (1000, 10**8):
        profile = Profile.uniform(layers=1, numel_per_layer=numel, forward_s=0.0, backward_s=1e-9)
        profile = dataclasses.replace(profile, pass_s_per_element=0.0)
        whole_s = predict("bsp/allreduce:native/none/sequential", profile, cluster).step_s
        assert whole_s == pytest.approx(cluster.fits[0].seconds(1.5 * 4 * numel), rel=0.05, abs=4e-5)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("workers: 4\nbandwidth_bytes_per_s: 1.0e8\nlatency_s: 1.0e-4\nspeed: 3\n", "speed"),
        ("workers: 4\nlatency_s: 1.0e-4\n", "bandwidth_bytes_per_s"),
        ("workers: four\nbandwidth_bytes_per_s: 1.0e8\nlatency_s: 1.0e-4\n", "workers"),
        ("workers: 4\nbandwidth_bytes_per_s: 0\nlatency_s: 1.0e-4\n", "bandwidth_bytes_per_s"),
        (
            "workers: 2\nbandwidth_bytes_per_s: 1.0e8\nlatency_s: 1.0e-4\n"
            "fits: [{program: ring, alpha_s: -1.0, beta_s_per_byte: 0.0}]\n",
            r"fits\.0: .*alpha_s",
        ),
        (
            "workers: 8\nbandwidth_bytes_per_s: 5.0e+10\nlatency_s: 1.0e-5\nlevels:\n"
            "- {name: node, workers: 4, bandwidth_bytes_per_s: 4.5e+11}\n"
            "- {name: cluster, workers: 8, bandwidth_bytes_per_s: 1.25e+9}\n",  # changed by hand, and not the first
            "slowest of levels carries 1.25e\\+09",
        ),
        ("[1, 2", "cannot be read"),
    ],
)
def test_malformed_files_name_the_field(tmp_path: pathlib.Path, text: str, named: str) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    with pytest.raises(FileError, match=named):
        Cluster.read(path)


def test_a_program_is_fitted_once() -> None:
    fit = Fit(program="ring", alpha_s=0.0, beta_s_per_byte=1e-8)
    with pytest.raises(FileError, match="twice"):
        Cluster(workers=2, bandwidth_bytes_per_s=1e8, latency_s=0.0, fits=(fit, fit))


@pytest.mark.parametrize("workers", [(0, 0), (0, 4), (-1, 2)])
def test_pairs_are_ranks(workers: tuple[int, int]) -> None:
    pair = Pair(workers=workers, latency_s=0.0, bandwidth_bytes_per_s=1e6, both_ways_bytes_per_s=1e6)
    with pytest.raises(FileError, match="pairs"):
        Cluster(workers=4, bandwidth_bytes_per_s=1e8, latency_s=0.0, pairs=(pair,))


def test_scaling_divides_the_time_of_bytes_and_keeps_latency() -> None:
    fast = MEASURED.scaled(4.0)
    assert fast.bandwidth_bytes_per_s == 1e8
    assert fast.fit("ring").seconds(1e6) == pytest.approx(1e-3 + 1e-2)
    assert fast.fit("native") is None
