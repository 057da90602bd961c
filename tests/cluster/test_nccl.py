"""NCCL's formulas: near the public tables that they were read off, and never a ring's latency."""

import dataclasses
import itertools

import pytest

from tightwire.cluster.nccl import WAYS, prior
from tightwire.cluster.presets import PRESETS, preset
from tightwire.simulate.collective import by_name
from tightwire.validate.nccl import public_cases

TABLES = {"h100-16-tcpxo": ("gcp-a3-megagpu-8g", "tcpxo"), "a100-16-efa": ("aws-p4d", "efa")}


@pytest.mark.parametrize("table", TABLES)
def test_formulas_are_near_the_tables(table: str) -> None:
    name, wire = TABLES[table]
    fit = prior(preset(name, 2), wire)  # type: ignore[arg-type]
    cases = [case for case in public_cases() if case.table == table]
    ratios = [fit.seconds(2 * 15 / 16 * case.num_bytes) / case.seconds for case in cases]
    assert all(0.5 < ratio < 2.1 for ratio in ratios), ratios
    assert sum(abs(ratio - 1) for ratio in ratios) / len(ratios) < fit.residual


def test_small_exchanges_take_a_tree_not_a_ring() -> None:
    for nodes, alpha_us in ((2, 37), (4, 61), (64, 157)):
        fit = by_name("native", 8 * nodes).prior(preset("dgx-a100", nodes))
        assert fit.alpha_s == pytest.approx(alpha_us * 1e-6)
        assert fit.source == "prior"
    assert by_name("native", 8).prior(preset("dgx-h100", 1)).alpha_s == pytest.approx(13e-6)
    assert by_name("ring", 16).prior(preset("dgx-a100", 2)).program == "ring"


@pytest.mark.parametrize("name", [name for name, known in PRESETS.items() if known.nccl])
def test_more_bytes_take_longer(name: str) -> None:
    for nodes in (1, 2, 5, 100):
        cluster = preset(name, nodes)
        fit = prior(cluster, cluster.nccl or "efa")
        times = [fit.seconds(2.0**power) for power in range(40)]
        assert all(a < b * 1.0001 for a, b in itertools.pairwise(times))
    assert {known.nccl for known in PRESETS.values()} == {None, *WAYS}


def test_no_program_of_messages_is_flattered_against_the_librarys_own() -> None:
    cluster = preset("aws-p4d", 4)
    bare = dataclasses.replace(cluster, nccl=None)
    own, free = (by_name("halving-doubling", 32).prior(c) for c in (cluster, bare))
    assert own.beta_s_per_byte == pytest.approx(free.beta_s_per_byte / 0.9)
    assert own.alpha_s == pytest.approx(free.alpha_s * 73 / 20)
    assert own.residual >= prior(cluster, "efa").residual
