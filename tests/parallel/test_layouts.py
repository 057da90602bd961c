"""Layouts: what is legal, what fits, what it takes; each held to the formula of its paper."""

import dataclasses
import itertools
import tomllib

import pytest

from tightwire.cluster import Cluster
from tightwire.cluster.presets import preset
from tightwire.errors import FileError, PlanError
from tightwire.parallel import (
    SHAPES,
    Accelerators,
    Layout,
    TrainingCost,
    Transformer,
    memory_of,
    parallelise,
    predict_iteration,
    transformer,
)
from tightwire.parallel.layout import require_legal
from tightwire.parallel.leg import _ranked
from tightwire.parallel.memory import RUNTIME_BYTES, layer_bytes
from tightwire.parallel.search import LayoutSearch, check
from tightwire.parallel.written import SCHEDULES, device_mesh, torchtitan
from tightwire.profile.devices import DEVICES

GPT = Transformer(layers=8, hidden=1024, heads=16, seq_len=2048)
OLD = TrainingCost(batch=32, fused=False, overlaps=False)


@pytest.mark.parametrize(
    ("name", "billions"),
    [("gpt3-1.7b", 1.65), ("gpt3-1t", 1008), ("llama3-70b", 70.6), ("llama3-405b", 405.8), ("mixtral-8x7b", 46.7),
     ("deepseek-v3", 671)],
)  # fmt: skip
def test_shapes_have_their_published_size(name: str, billions: float) -> None:
    assert transformer(name).parameters == pytest.approx(billions * 1e9, rel=0.02)
    with pytest.raises(FileError, match=r"known: gpt3-1\.7b"):
        transformer("gpt5")


def test_experts_count_once_per_token() -> None:
    assert SHAPES["deepseek-v3"].active_parameters == pytest.approx(37e9, rel=0.03)
    assert SHAPES["mixtral-8x7b"].active_parameters == pytest.approx(12.9e9, rel=0.02)


@pytest.mark.parametrize("t", [1, 2, 8])
@pytest.mark.parametrize("sequence", [False, True])
def test_activations_are_those_of_the_paper(t: int, sequence: bool) -> None:
    """Korthikanti et al. 2022, table 2."""
    how = Layout(tensor=t, sequence=sequence, micro_batch=2)
    sbh, core = 2 * GPT.seq_len * GPT.hidden, 5 * GPT.heads * GPT.seq_len / GPT.hidden
    expected = sbh / t * (34 + core) if sequence else sbh * (10 + 24 / t + core / t)
    assert layer_bytes(GPT, how, "none", False) == pytest.approx(expected)
    assert layer_bytes(GPT, how, "selective", False) == pytest.approx(expected - sbh * core / t)
    assert layer_bytes(GPT, how, "full", False) == pytest.approx(2 * sbh / (t if sequence else 1))


def test_state_is_that_of_zero() -> None:
    """Rajbhandari et al. 2020: 2 + 4 + 12 bytes per parameter, gradients in single precision."""
    size = GPT.parameters

    def state(how: Layout) -> float:
        memory = memory_of(GPT, how, 1, fused=True)
        return memory.weights + memory.gradients + memory.optimizer

    assert state(Layout(data=4)) == pytest.approx(18 * size)
    assert state(Layout(data=4, shard="zero1")) == pytest.approx((6 + 12 / 4) * size)
    assert state(Layout(data=4, shard="zero2")) == pytest.approx((2 + 16 / 4) * size)
    assert state(Layout(data=4, shard="zero3")) == pytest.approx(18 / 4 * size)
    assert state(Layout(data=4, shard="zero3", shard_group=2)) == pytest.approx(18 / 2 * size)
    assert memory_of(GPT, Layout(data=4), 1, fused=True).buffers >= RUNTIME_BYTES


def test_bubbles_are_those_of_the_papers() -> None:
    """Narayanan et al. 2021: (p−1)/m of the work, over v chunks; Qi et al. 2024: a third of that by ZB-H1."""
    free = Accelerators(
        launch_s=1e-12, inside_bytes_per_s=1e15, across_bytes_per_s=1e15, inside_latency_s=1e-15
    )
    model = dataclasses.replace(GPT, vocabulary=1)
    base = Layout(pipeline=4, recompute="none")

    def share(how: Layout) -> float:
        found = predict_iteration(model, how, OLD, free)
        return found.bubble_s / found.compute_s

    assert share(base) == pytest.approx(3 / 32, rel=1e-3)
    assert share(dataclasses.replace(base, schedule="interleaved", chunks=2)) == pytest.approx(
        3 / 64, rel=1e-3
    )
    assert share(dataclasses.replace(base, schedule="zero-bubble")) == pytest.approx(1 / 32, rel=1e-3)


def test_work_does_not_depend_on_the_cut() -> None:
    fast = Accelerators(launch_s=1e-12)
    whole = predict_iteration(GPT, Layout(), OLD, fast).compute_s
    for how in (Layout(data=4), Layout(tensor=4), Layout(context=4)):
        assert predict_iteration(GPT, how, OLD, fast).compute_s == pytest.approx(whole / 4)


@pytest.mark.parametrize(
    ("how", "complaint"),
    [
        (Layout(tensor=3), "tensor=3 does not divide 16 heads; legal: 1, 2, 4, 8, 16"),
        (Layout(pipeline=7), "pipeline=7 does not divide 8 layers.*legal: 1, 2, 3, 4, 5, 8"),
        (Layout(data=3), "a batch of 32 sequences does not divide into 3 shares.*legal data: 1, 2, 4"),
        (Layout(data=4, micro_batch=3), "legal micro_batch: 1, 2, 4, 8"),
        (Layout(expert=2, data=2), "the model has no experts; legal: 1"),
        (Layout(context=3), "context=3 does not divide sequences of 2048 tokens"),
        (Layout(tensor=8, context=4, context_by="ulysses"), "2 heads that a tensor shard has; legal: 1, 2"),
        (Layout(pipeline=4, schedule="interleaved", chunks=3), "chunks=3 does not divide the 2 layers"),
    ],
)
def test_degrees_that_leave_a_rest_are_told_the_legal_ones(how: Layout, complaint: str) -> None:
    with pytest.raises(PlanError, match=complaint):
        require_legal(GPT, how, 32)


def test_experts_must_divide_experts_and_ranks() -> None:
    with pytest.raises(
        PlanError, match=r"expert=4 does not divide both 8 experts and the 2 ranks.*legal: 1, 2"
    ):
        require_legal(SHAPES["mixtral-8x7b"], Layout(data=2, expert=4), 32)


def test_contradictions_are_refused() -> None:
    with pytest.raises(PlanError, match="chunks=2, pipeline=1"):
        Layout(schedule="interleaved", chunks=2)
    with pytest.raises(PlanError, match="must divide the 4 shares"):
        Layout(data=4, shard="zero1", shard_group=3)
    with pytest.raises(PlanError, match="takes 4 workers, and the cluster has 8"):
        check(GPT, Layout(data=4), preset("dgx-a100", 1), OLD, 80e9)
    with pytest.raises(PlanError, match=r"mostly activations\. Take recompute=full"):
        check(GPT, Layout(data=8, micro_batch=4, recompute="none"), preset("dgx-a100", 1), OLD, 12e9)


def test_a_layout_that_is_asked_for_is_the_only_one() -> None:
    node = preset("dgx-h100", 1)
    how = Layout(tensor=2, data=4, shard="zero3", recompute="full")
    found = parallelise("llama3-8b", node, tokens_per_batch=2**19, layout=how)
    assert [row.how for row in found.ranking] == [how]
    assert found.considered == 1
    with pytest.raises(PlanError, match="tensor=3 does not divide 32 heads; legal: 1, 2, 4, 8"):
        parallelise("llama3-8b", node, layout=Layout(tensor=3))
    with pytest.raises(PlanError, match="takes 4 workers, and the cluster has 8"):
        parallelise("llama3-8b", node, layout=Layout(tensor=4))


def test_the_fastest_that_fits_is_found() -> None:
    search = LayoutSearch(
        model=GPT,
        cluster=preset("dgx-a100", 1),
        training=TrainingCost(batch=32),
        memory_bytes=6e9,
        devices=Accelerators(),
    )
    by_hand = [
        predict_iteration(GPT, how, search.training, search.devices, search.network).seconds
        for how, micro_batches in search.layouts
        if memory_of(GPT, how, micro_batches, fused=True).total <= 6e9
    ]
    found = search.run(3, "lossless")
    assert found.fitting == len(by_hand) < found.considered
    assert found.best.step_s == pytest.approx(min(by_hand))
    assert all(a.step_s <= b.step_s for a, b in itertools.pairwise(found.ranking))
    low_s, high_s = found.best.interval_s
    assert low_s < found.best.step_s < high_s
    assert found.best.memory.total <= 6e9


def test_what_does_not_fit_says_what_would() -> None:
    with pytest.raises(PlanError, match=r"no layout on 8 devices of 80 GB fits: .* or about \d+ of these"):
        parallelise("llama3-405b", preset("dgx-h100", 1), tokens_per_batch=2**20)
    with pytest.raises(PlanError, match="no layout of 7 workers is legal"):
        parallelise(GPT, Cluster.uniform(7, 1e9, 1e-6), tokens_per_batch=32 * 2048)
    with pytest.raises(PlanError, match="less than one sequence"):
        parallelise(GPT, preset("dgx-a100", 1), tokens_per_batch=100)


def test_slow_lines_between_sites_get_a_plan_of_their_own() -> None:
    """Replicas across a slow outer level may make steps alone where that is allowed."""
    from tightwire.cluster import Level

    sites = Cluster.of_levels(
        Level(name="node", workers=8, bandwidth_bytes_per_s=300e9, latency_s=1e-5),
        Level(name="sites", workers=16, bandwidth_bytes_per_s=1e8, latency_s=1e-2),
    )
    found = parallelise("gpt3-1.7b", sites, tokens_per_batch=2**17, allow="stale", top=3, device="a100")
    exact = parallelise("gpt3-1.7b", sites, tokens_per_batch=2**17, top=3, device="a100")
    assert not found.best.leg.plan.startswith("bsp/allreduce/none")
    assert found.best.step_s < exact.best.step_s


def test_layouts_are_written_for_torch_and_torchtitan() -> None:
    found = parallelise(GPT, preset("dgx-a100", 2), tokens_per_batch=32 * 2048, top=2)
    compile(device_mesh(found.best.how), "mesh.py", "exec")
    assert set(SCHEDULES) == {"1f1b", "interleaved", "zero-bubble"}
    content = tomllib.loads(torchtitan(found.best, "gpt", 32, 2048))
    degrees = content["parallelism"]
    names = ("data_parallel_replicate", "data_parallel_shard", "tensor_parallel", "context_parallel")
    product = degrees["pipeline_parallel_degree"]
    for name in names:
        product *= degrees[f"{name}_degree"]
    assert product == 16


def test_layouts_are_read_from_text() -> None:
    how = Layout.parse({"data": "4", "sequence": "1", "tensor": "2", "shard": "zero1"})
    assert how == Layout(data=4, sequence=True, tensor=2, shard="zero1")
    with pytest.raises(PlanError, match="has no colour"):
        Layout.parse({"colour": 3})
    with pytest.raises(PlanError, match="shard=zero9 is unknown; known: none, zero1"):
        Layout.parse({"shard": "zero9"})
    with pytest.raises(PlanError, match="whole numbers"):
        Layout.parse({"data": "many"})
    for text, truth in (("yes", True), ("True", True), ("no", False), ("0", False)):
        assert Layout.parse({"tensor": 2, "sequence": text}).sequence is truth
    with pytest.raises(PlanError, match="'maybe' is neither true nor false"):  # and not taken for false
        Layout.parse({"sequence": "maybe"})
    with pytest.raises(PlanError, match=r"shard_group=-2 needs .* must divide the 4 shares"):
        Layout.parse({"data": 4, "shard": "zero3", "shard_group": -2})


@pytest.mark.parametrize(
    ("name", "device"),
    [("dgx-1v", "v100"), ("aws-p4d", "a100-40gb"), ("dgx-a100", "a100"), ("dgx-h100", "h100")],
)
def test_a_device_that_nobody_names_is_known_by_its_memory_and_line_and_told(name: str, device: str) -> None:
    found = parallelise("gpt3-1.7b", preset(name, 1), tokens_per_batch=2**17, top=1)
    assert found.devices == Accelerators.of(DEVICES[device])
    assert sum(f"taken for {device}," in sentence for sentence in found.why) == 1
    told = parallelise("gpt3-1.7b", preset(name, 1), tokens_per_batch=2**17, top=1, device="a100")
    assert not any("taken for" in sentence for sentence in told.why)


def test_the_plan_between_replicas_is_of_devices_whose_codecs_run_on_them() -> None:
    """At the rate of a host's memory no codec would ever pay."""
    found = _ranked(2, 1e8, 1e-4, 10**8, 24, 1.0, 1.2e12, "lossy")
    assert found.profile.is_apart
    assert found.profile.pass_s_per_element == pytest.approx(12 / 1.2e12)
    assert found.gain(found.chosen) > 1.5
