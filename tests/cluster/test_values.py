import pathlib

import pytest

from tightwire.cluster import Cluster, Fit, Pair
from tightwire.errors import FileError

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
        ("bandwidth_bytes_per_s", 4e11),
        ("latency_s", -1e-6),
        ("latency_s", 100.0),
    ],
)
def test_absurd_values_are_refused_by_field(field: str, value: float) -> None:
    good = {"workers": 4, "bandwidth_bytes_per_s": 1e8, "latency_s": 1e-4}
    with pytest.raises(FileError, match=field):
        Cluster(**(good | {field: value}))


def test_bits_are_asked_back() -> None:
    with pytest.raises(FileError, match=r"3,200 Gb/s.*if bits were meant, write 5e\+10"):
        Cluster.uniform(4, 400e9, 1e-5)


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
