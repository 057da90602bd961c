"""The simulator against closed forms, the runtime's byte formula, and common sense."""

import dataclasses
import itertools
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tightwire import architecture as architectures
from tightwire.architecture.allreduce.traffic import predict_bytes
from tightwire.catalogue import parse_compression
from tightwire.cluster import Cluster, Fit
from tightwire.errors import PlanError
from tightwire.plan import Plan
from tightwire.profile import CodecCost, ParameterProfile, Profile
from tightwire.simulate import counts_of, predict, prior, sent_bytes, slowest_delay
from tightwire.simulate.counts import CLOSED_FORMS, count
from tightwire.sync.roll import roll_fields

LATENCY_S, BANDWIDTH = 1e-4, 25e6
CLUSTER = Cluster.uniform(4, BANDWIDTH, LATENCY_S)
# Passes over memory are free here, and workers equally fast, so that closed forms are short.
PROFILE = dataclasses.replace(
    Profile.uniform(layers=8, numel_per_layer=500_000, forward_s=0.1, backward_s=0.2, optimizer_s=0.01),
    pass_s_per_element=0.0,
    noise=0.0,
)
# Ranks tell each other which of the 8 parameters they used, and whether they go on: 4 bytes each, in 2 doublings.
CONTROL_BYTES = 2 * roll_fields(8) * 4
PROGRAMS = sorted(architectures.PROGRAMS)
PLANS = [
    "bsp",
    "bsp/allreduce/none/sequential",
    "bsp/allreduce:ring/none/fusion:4MiB",
    "bsp/allreduce:recursive-doubling/bf16",
    "bsp/allreduce/int8+ef/fusion:1MiB",
    "bsp/allreduce/topk:0.01+ef/fusion:25MiB",
    "local:4",
    "local:4/allreduce/topk:0.01+ef/sequential",
]


@pytest.mark.parametrize("workers", range(1, 18))
@pytest.mark.parametrize("program", PROGRAMS)
def test_closed_forms_count_what_programs_do(program: str, workers: int) -> None:
    built = architectures.build(program, workers)
    if workers > 1 and program in CLOSED_FORMS:
        assert CLOSED_FORMS[program](workers) == count(built)
    assert counts_of(program, workers).sends == max(len(built.sends(r)) for r in range(workers))


# Where recursive doubling folds, its steps are not equally busy: the formula takes the busiest worker's bytes.
@pytest.mark.parametrize("workers", [2, 4, 8])
@pytest.mark.parametrize("program", ["ring", "native", "recursive-doubling"])
def test_formulas_are_those_of_the_programs(program: str, workers: int) -> None:
    cluster = Cluster.uniform(workers, BANDWIDTH, LATENCY_S)
    built = architectures.build(program, workers)
    numel = 12 * 8 * 1000
    expected_s = built.seconds([4 * size for size in built.chunk_sizes(numel)], LATENCY_S, BANDWIDTH)
    none = parse_compression("none")[0]
    sent = sent_bytes(program, none, numel, 4, workers)
    assert prior(program, cluster).seconds(sent) == pytest.approx(expected_s, rel=1e-9)


@pytest.mark.parametrize("compression", ["none", "bf16", "int8", "topk:0.01"])
@pytest.mark.parametrize("workers", [2, 3, 4, 7])
def test_bytes_are_those_that_the_runtime_sends(compression: str, workers: int) -> None:
    codec = parse_compression(compression)[0]
    for program in PROGRAMS if codec.combine != "none" else ["allgather"]:
        if program == "native" and codec.sums_as is None:
            continue
        built = architectures.build(program, workers)
        by_rank = [predict_bytes(built, codec, 100_003, 4, rank) for rank in range(workers)]
        assert sent_bytes(program, codec, 100_003, 4, workers) in by_rank
        assert sent_bytes(program, codec, 100_003, 4, workers) >= 0.99 * max(by_rank)


@pytest.mark.parametrize("program", ["ring", "native", "recursive-doubling", "allgather"])
def test_an_uncontended_exchange_takes_alpha_plus_beta_bytes(program: str) -> None:
    fit = Fit(program=program, alpha_s=2e-3, beta_s_per_byte=4.1e-8)
    cluster = dataclasses.replace(CLUSTER, fits=(fit,))
    prediction = predict(f"bsp/allreduce:{program}/none/sequential", PROFILE, cluster)
    expected_s = fit.seconds(prediction.bytes_per_step - CONTROL_BYTES)
    assert prediction.exposed_s == pytest.approx(expected_s, rel=1e-9)
    assert prediction.step_s == pytest.approx(PROFILE.compute_s + expected_s, rel=1e-9)


def test_a_gathering_plan_encodes_once_and_decodes_every_message() -> None:
    cost = CodecCost(
        compression="topk:0.01", encode_s_per_element=2e-9, decode_s_per_element=1e-10, fixed_s=1e-5
    )
    profile = dataclasses.replace(PROFILE, codecs=(cost,))
    prediction = predict("bsp/allreduce/topk:0.01+ef/sequential", profile, CLUSTER)
    assert prediction.codec_s == pytest.approx(4_000_000 * (2e-9 + 4 * 1e-10) + 4 * 1e-5)
    assert prediction.bytes_per_step == 3 * 40_000 * 8 + CONTROL_BYTES


def test_buckets_overlap_with_backward() -> None:
    sequential = predict("bsp/allreduce/none/sequential", PROFILE, CLUSTER)
    fused = predict("bsp/allreduce/none/fusion:2MB", PROFILE, CLUSTER)
    first_ready_s = PROFILE.parameters[0].ready_s
    wire_s = (fused.bytes_per_step - CONTROL_BYTES) / BANDWIDTH + 8 * 6 * LATENCY_S
    assert fused.step_s == pytest.approx(0.1 + first_ready_s + wire_s + 0.01)
    assert fused.step_s < sequential.step_s
    assert fused.bytes_per_step == sequential.bytes_per_step


def test_a_fast_wire_leaves_only_the_last_bucket_exposed() -> None:
    fast = Cluster.uniform(4, 12.5e9, 1e-6)
    prediction = predict("bsp/allreduce/none/fusion:2MB", PROFILE, fast)
    assert prediction.exposed_s == pytest.approx(6e-6 + 1.5 * 2e6 / 12.5e9)
    assert prediction.bound_by == "compute"


def test_rounds_that_differ_for_ever_are_refused() -> None:
    with pytest.raises(PlanError, match="rounds differ for ever"):
        predict("bsp/allreduce/topk:0.01+ef+dense-every:3", PROFILE, CLUSTER)


def test_small_tensors_travel_dense() -> None:
    flat = dataclasses.replace(PROFILE.parameters[0], name="flat", numel=1000, shape=(1000,))
    profile = dataclasses.replace(PROFILE, parameters=(*PROFILE.parameters, flat))
    prediction = predict("bsp/allreduce:allgather/topk:0.01+ef+min:4KiB,dims=2/sequential", profile, CLUSTER)
    assert prediction.bytes_per_step == 3 * (40_000 * 8 + 4_000) + CONTROL_BYTES + 8


def test_a_world_of_one_exchanges_nothing() -> None:
    prediction = predict("bsp/allreduce:ring/int8+ef", PROFILE, Cluster.uniform(1, BANDWIDTH, LATENCY_S))
    assert prediction.bytes_per_step == 0
    assert prediction.step_s == pytest.approx(PROFILE.compute_s)


def test_local_steps_share_one_exchange() -> None:
    every = predict("local:1/allreduce/none/sequential", PROFILE, CLUSTER)
    eighth = predict("local:8/allreduce/none/sequential", PROFILE, CLUSTER)
    assert eighth.step_s - PROFILE.compute_s == pytest.approx((every.step_s - PROFILE.compute_s) / 8)
    assert eighth.bytes_per_step == pytest.approx(every.bytes_per_step / 8, abs=1)


def test_the_slowest_worker_sets_the_pace() -> None:
    noisy = dataclasses.replace(PROFILE, noise=0.1)
    late_s = 0.31 * 0.1 * slowest_delay(4)
    for plan, share in (("bsp", 1.0), ("local:4/allreduce/none/sequential", 0.5)):
        calm, rough = predict(plan, PROFILE, CLUSTER), predict(plan, noisy, CLUSTER)
        assert rough.step_s - calm.step_s == pytest.approx(late_s * share)
        assert rough.compute_s == pytest.approx(calm.compute_s)
    alone = Cluster.uniform(1, BANDWIDTH, LATENCY_S)
    assert predict("bsp", noisy, alone).step_s == pytest.approx(PROFILE.compute_s)


def test_shared_cores_lose_compute_only_to_what_moves_meanwhile() -> None:
    beta = 1 / BANDWIDTH
    native = Fit(program="native", alpha_s=1e-3, beta_s_per_byte=beta, cpu_s_per_byte=beta / 4)
    busy = dataclasses.replace(CLUSTER, fits=(native,))
    shared = dataclasses.replace(PROFILE, contention=2.0)
    for plan, loses in (("bsp/allreduce/none/sequential", False), ("bsp/allreduce/none/fusion:2MB", True)):
        plain = predict(plan, PROFILE, busy).compute_s
        assert (predict(plan, shared, busy).compute_s > plain * 1.1) is loses


@pytest.mark.parametrize("plan", PLANS)
def test_the_critical_path_is_gapless_and_as_long_as_the_round(plan: str) -> None:
    prediction = predict(plan, PROFILE, CLUSTER)
    path = prediction.critical_path
    assert path[0].start_s == 0.0
    for before, after in itertools.pairwise(path):
        assert before.end_s == pytest.approx(after.start_s)
    steps = Plan.parse(plan).sync.steps_per_round
    assert path[-1].end_s == pytest.approx(prediction.step_s * steps)
    assert prediction.low_s <= prediction.step_s <= prediction.high_s


@pytest.mark.parametrize(
    ("plan", "cluster", "bound"),
    [
        ("bsp/allreduce/none/fusion:1MiB", Cluster.uniform(4, 1e6, 1e-5), "wire"),
        ("bsp/allreduce/none/fusion:1MiB", Cluster.uniform(4, 1e10, 1e-1), "latency"),
        ("bsp/allreduce/none/fusion:1MiB", Cluster.uniform(4, 1e10, 1e-6), "compute"),
    ],
)
def test_what_bounds_a_step(plan: str, cluster: Cluster, bound: str) -> None:
    assert predict(plan, PROFILE, cluster).bound_by == bound


@settings(max_examples=50, deadline=None)
@given(
    numels=st.lists(st.integers(0, 3_000_000), min_size=1, max_size=20),
    bandwidth=st.floats(1e5, 1e10),
    workers=st.integers(1, 9),
    plan=st.sampled_from(PLANS),
)
def test_no_plan_beats_compute_or_the_wire(
    numels: list[int], bandwidth: float, workers: int, plan: str
) -> None:
    parameters = tuple(
        ParameterProfile(name=f"p{i}", numel=numel, ready_s=0.2 * (i + 1) / len(numels))
        for i, numel in enumerate(numels)
    )
    profile = Profile(forward_s=0.1, backward_s=0.2, optimizer_s=0.01, parameters=parameters)
    prediction = predict(plan, profile, Cluster.uniform(workers, bandwidth, 1e-5))
    assert prediction.step_s >= profile.compute_s * (1 - 1e-9)
    control_bytes = 4 * 4 * len(numels)  # counted, but its time is a latency
    assert prediction.step_s >= (prediction.bytes_per_step - 1 - control_bytes) / bandwidth
    assert prediction.step_s <= prediction.compute_s + prediction.exposed_s + 1e-9


def test_more_bandwidth_never_hurts() -> None:
    times = [
        predict("bsp/allreduce/none/fusion:1MiB", PROFILE, CLUSTER.scaled(f)).step_s for f in (1, 2, 5, 50)
    ]
    assert times == sorted(times, reverse=True)


def test_a_thousand_workers_are_predicted_without_building_their_program() -> None:
    before = architectures.build.cache_info().misses
    prediction = predict("bsp/allreduce:ring/none/fusion:1MiB", PROFILE, Cluster.uniform(1024, 1e9, 1e-5))
    assert architectures.build.cache_info().misses == before
    assert prediction.bytes_per_step == pytest.approx(2 * 1023 / 1024 * PROFILE.num_bytes, rel=1e-4)


def test_an_unknown_plan_is_refused() -> None:
    with pytest.raises(PlanError, match="rnig"):
        predict("bsp/allreduce:rnig", PROFILE, CLUSTER)


def test_it_needs_neither_torch_nor_numba() -> None:
    code = (
        "import sys, tightwire.simulate as s, tightwire.planner\n"
        "from tightwire.cluster import Cluster; from tightwire.profile import Profile\n"
        "p = Profile.uniform(layers=2, numel_per_layer=10, forward_s=1, backward_s=1)\n"
        "s.predict('bsp/allreduce/int8+ef', p, Cluster.uniform(4, 1e8, 1e-4))\n"
        "assert not {'torch', 'numba', 'pydantic', 'typer'} & set(sys.modules), sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)
