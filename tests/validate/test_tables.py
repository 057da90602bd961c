"""Validation: its statistics by hand, its data, and that constants are found again."""

import itertools
import math

import pytest

from tightwire.cli.validate import missed_targets
from tightwire.parallel import Accelerators, Layout, TrainingCost, Transformer, predict_iteration
from tightwire.schedule import TensorFacts, Wire
from tightwire.validate import Point, Table, ddp, diloco, fsdp, hooks, megatron, nccl, seven_methods
from tightwire.validate.fitting import Prior, fit
from tightwire.validate.table import deviation_of, interval
from tightwire.validate.tables import TABLES


def point(name: str, measured: float, predicted: float, held_out: bool = True) -> Point:
    return Point(name=name, group="only", measured=measured, predicted=predicted, held_out=held_out)


def test_statistics() -> None:
    points = (
        point("a", 10.0, 11.0),
        point("b", 20.0, 10.0),
        point("c", 40.0, 38.0),
        point("d", 1.0, 1.0, False),
    )
    held_out, fitted = Table(name="t", points=points, better="high").rows()
    assert (held_out["held_out"], held_out["points"], fitted["points"]) == (True, 3, 1)
    assert held_out["mape"] == pytest.approx((0.1 + 0.5 + 0.05) / 3)
    assert held_out["median"] == pytest.approx(0.1)
    assert held_out["worst"] == pytest.approx(0.5)
    assert held_out["spearman"] == pytest.approx(0.5)
    assert held_out["regret"] == 0.0
    low = Table(name="t", points=points, better="low").rows()[0]
    assert low["regret"] == pytest.approx(20.0 / 10.0 - 1)


def test_constants_are_found_again() -> None:
    true = Accelerators(flops_per_s=1.7e14, launch_s=2e-3)
    gpt = Transformer(layers=24, hidden=2048, heads=16, seq_len=1024)
    cuts = [Layout(tensor=t, data=64 // t, micro_batch=b) for t in (1, 2, 4, 8) for b in (1, 2, 4, 8)]
    training = TrainingCost(batch=512, fused=False, overlaps=False)
    measured = [(cut, predict_iteration(gpt, cut, training, true).seconds) for cut in cuts]
    priors = {"flops_per_s": Prior(value=3e14, spread=2.0), "launch_s": Prior(value=5e-3, spread=2.0)}
    found = fit(
        Accelerators,
        priors,
        lambda devices, cut: predict_iteration(gpt, cut, training, devices).seconds,
        measured,
    )
    assert found.flops_per_s == pytest.approx(true.flops_per_s, rel=0.02)
    assert found.launch_s == pytest.approx(true.launch_s, rel=0.02)


@pytest.mark.parametrize(
    "name", ["programs", "nccl-sizes", "nccl-all-sizes", "nccl-scaling", "megatron", "megatron-more", "fsdp"]
)
def test_targets_are_met(name: str) -> None:
    assert missed_targets(TABLES[name]()) == []


def test_stated_intervals_hold_what_they_claim() -> None:
    deviation = deviation_of([(math.exp(0.1), 1.0), (1.0, math.exp(0.1)), (1.0, 1.0)], 1)
    assert deviation == pytest.approx(0.1)
    low, high = interval(10.0, deviation)
    assert (low, high) == (pytest.approx(10 / math.exp(0.128155)), pytest.approx(10 * math.exp(0.128155)))
    inside = Point(name="a", group="a", measured=10.0, predicted=11.0, stated=(9.0, 12.0))
    outside = Point(name="b", group="a", measured=10.0, predicted=13.0, stated=(12.0, 14.0))
    silent = Point(name="c", group="a", measured=10.0, predicted=13.0)
    assert Table(name="t", points=(inside, outside, silent)).rows()[0]["coverage"] == 0.5
    assert Table(name="t", points=(silent,)).rows()[0]["coverage"] is None


def test_public_tables_are_whole() -> None:
    tables = {case.table for case in nccl.public_cases()}
    assert len(tables) == 7
    for name in tables:
        sizes = [case.num_bytes for case in nccl.public_cases() if case.table == name]
        assert all(b == 2 * a for a, b in itertools.pairwise(sizes))


def test_every_measurement_has_its_prediction() -> None:
    assert len(list(megatron.cases())) == 73
    assert len(list(megatron.cases(megatron.MORE))) == 36
    cases = list(seven_methods.cases())
    assert (len(cases), len(list(seven_methods.cases(seven_methods.MORE)))) == (112, 140)
    assert [len(list(of.cases())) for of in (ddp, fsdp, hooks, diloco)] == [51, 29, 5, 75]
    assert sum(case.is_fitted for case in cases) == 28
    testbed = seven_methods.Testbed(**{k: p.value for k, p in seven_methods.priors("10GbE-TCP").items()})
    for case in cases[::5]:
        alone = case.batch_per_gpu / seven_methods.load(case.model).compute_s
        assert 0 < seven_methods.predict(testbed, case) <= case.gpus * alone
    assert math.isclose(sum(t.num_bytes for t in seven_methods.load("ResNet-50").tensors), 4 * 25_557_032)


def test_one_device_is_given_and_the_rest_follows() -> None:
    profile = ddp.profile_of("resnet50", 32, 0.1)
    assert profile.compute_s == pytest.approx(0.1)
    assert ddp.cluster(16, 2).workers == 16
    given, bf16 = [case for case in hooks.cases() if case.source.startswith("EgoVerse")]
    assert given.predict(1.4368) == pytest.approx(given.times, rel=1e-3)
    assert bf16.predict(1.4368) == pytest.approx(bf16.times, rel=0.03)


def test_what_travels_beside_a_backward_pass_costs_a_site_nothing() -> None:
    case = next(case for case in diloco.cases() if (case.method, case.utilisation) == ("streaming", 0.9))
    # Bits of a fragment in bfloat16, behind two thirds of a step.
    fragment = 16 * case.model.parameters / (case.model.layers // 3)
    enough = fragment / (case.model.step_s * 2 / 3) / 1e9
    assert case.used(enough * 1.05) == 1.0 > case.used(enough * 0.9)


def test_the_survey_merges_by_its_own_tables() -> None:
    tensors = [TensorFacts(num_bytes=4_000_000, ready_s=ready_s) for ready_s in (0.01, 0.02, 0.021, 0.05)]
    believed = Wire(latency_s=0.002, bytes_per_s=1e9)
    merged = seven_methods.MergedByTable(believed=believed).partition(tensors)
    assert merged == ((0,), (1, 2), (3,))
    slow = Wire(latency_s=0.04, bytes_per_s=1e9)
    assert seven_methods.MergedByTable(believed=slow).partition(tensors) == ((0, 1, 2, 3),)
