"""Utilisation against bandwidth: what closed forms say, and that fewer bytes need less."""

import itertools

import pytest

from tightwire.validate import utilisation
from tightwire.validate.utilisation import Model, needed_gigabits, needs

SMALL = Model(name="small", parameters=1e8, layers=8, step_s=0.1)


def test_sequential_exchange_needs_its_bytes_over_its_share() -> None:
    plan = "bsp/allreduce/none/sequential"
    for share in (0.5, 0.8, 0.9):
        # Two workers send the gradients once each; the exchange may last compute · (1 / share - 1).
        gigabits = needed_gigabits(plan, SMALL.profile(), share)
        assert gigabits == pytest.approx(8 * 4 * 1e8 / 1e9 / (0.1 * (1 / share - 1)), rel=0.08)


def test_fewer_bytes_need_less() -> None:
    plans = (
        "bsp/allreduce/none/wfbp",
        "bsp/allreduce/bf16/wfbp",
        "diloco:100",
        "diloco:100/allreduce/int4+ef",
    )
    found = [need.gigabits for need in needs([SMALL], plans)]
    for more, less in itertools.pairwise(found):
        assert all(a is not None and b is not None and a > b for a, b in zip(more, less, strict=True))
    for gigabits in found:
        assert sorted(g for g in gigabits if g is not None) == list(gigabits)


def test_what_no_bandwidth_can_is_said_and_drawn() -> None:
    assert needed_gigabits("bsp/allreduce/none/sequential", SMALL.profile(), 0.999999) is None
    page = utilisation.plot([SMALL], ["diloco:100"])
    for words in (
        "between two sites, each way",
        "time computing, %",
        "How much of the time two sites compute",
    ):
        assert words in page
