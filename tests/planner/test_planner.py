"""The planner picks what measurements say, and says why; at its edges it says "don't"."""

import dataclasses
import functools
import pathlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tightwire.catalogue import FAMILIES, catalogue, parse_member
from tightwire.cluster import Adding, Cluster, Fit, Level, Prices
from tightwire.cluster.presets import preset
from tightwire.compression.recipe import Recipe
from tightwire.errors import PlanError
from tightwire.plan import Plan, PlanFile
from tightwire.planner import (
    STOCK,
    Allowance,
    Ranking,
    allowance_of,
    candidates,
    deviation,
    is_lossless,
    predict,
    recommend,
)
from tightwire.planner.bounds import lower_bound_s
from tightwire.planner.break_even import break_even, find_change
from tightwire.planner.candidates import (
    ALLOWANCES,
    begins_as_it_goes_on,
    departures,
    keeps_optimizer,
    lacks_feedback,
)
from tightwire.planner.confidence import chance
from tightwire.planner.curves import curves, plot
from tightwire.planner.explain import explain
from tightwire.planner.quality import is_studied
from tightwire.planner.ranking import AS_GOOD, careful_s, rank
from tightwire.planner.scaling import scaling_of, smaller
from tightwire.planner.search import competes
from tightwire.profile import Profile

PROFILE = Profile.uniform(
    layers=12, numel_per_layer=416_667, forward_s=0.12, backward_s=0.24, optimizer_s=0.02
)
SLOW = Cluster.uniform(4, 24e6, 1e-4)
FAST = Cluster.uniform(4, 12e9, 1e-6)
LEVELS = Cluster.of_levels(
    Level(name="node", workers=2, bandwidth_bytes_per_s=10e9, latency_s=1e-6),
    Level(name="cluster", workers=8, bandwidth_bytes_per_s=125e6, latency_s=5e-5),
)
CLUSTERS = (SLOW, FAST, LEVELS)


@functools.cache
def recommended(allow: Allowance, cluster: Cluster = SLOW) -> Ranking:
    return recommend(PROFILE, cluster, allow=allow)


@pytest.mark.parametrize("allow", ALLOWANCES)
def test_every_candidate_is_legal_and_within_the_allowance(allow: Allowance) -> None:
    plans = list(candidates(PROFILE.num_bytes, allow))
    assert len({str(plan) for plan in plans}) == len(plans)
    assert plans[0] == Plan.parse(STOCK)
    assert all(Plan.parse(str(plan)) == plan for plan in plans)
    assert {allowance_of(plan) for plan in plans} == set(ALLOWANCES[: ALLOWANCES.index(allow) + 1])


@pytest.mark.parametrize(
    ("plan", "allow"),
    [
        ("bsp", "lossless"),
        ("bsp/ps", "lossless"),
        ("bsp/allreduce/zstd", "lossless"),
        ("bsp/allreduce/none+clip:1", "lossy"),
        ("bsp/ps/bf16", "lossy"),
        ("delayed:1", "stale"),
        ("lag:0.1", "stale"),
        ("postlocal:8,start=2", "stale"),
        ("backup:1/ps", "stale"),
        ("bsp/gossip", "stale"),
        ("local:8", "stale"),
    ],
)
def test_what_must_be_allowed(plan: str, allow: str) -> None:
    assert allowance_of(Plan.parse(plan)) == allow
    assert is_lossless(Plan.parse(plan)) == (allow == "lossless")


def test_every_member_is_a_candidate_somewhere() -> None:
    tried = {member.name for plan in candidates(PROFILE.num_bytes, "stale") for member in plan.members()}
    recipes = {name for name, member in catalogue("compression").items() if issubclass(member, Recipe)}
    assert {name for axis in FAMILIES for name in catalogue(axis)} - recipes <= tried


@pytest.mark.parametrize("cluster", CLUSTERS, ids=["slow", "fast", "levels"])
def test_no_plan_beats_its_bound(cluster: Cluster) -> None:
    checked, refused = 0, []
    for plan in candidates(PROFILE.num_bytes, "stale", levelled=True):
        try:
            found = predict(plan, PROFILE, cluster)
        except PlanError:
            refused.append(str(plan))
            continue
        checked += 1
        assert lower_bound_s(plan, PROFILE, cluster) <= found.step_s * (1 + 1e-9), plan
    assert checked > 200
    # Rounds that differ for ever have no step time.
    assert refused == ["bsp/allreduce/topk:0.01+ef+dense-every:100/mgwfbp"]


def test_plans_that_want_another_optimizer_are_shown_and_not_chosen() -> None:
    for plan in ("bsp/allreduce/sign+momentum:0.9", "bsp/allreduce/dgc", "bsp/allreduce/demo"):
        assert not keeps_optimizer(Plan.parse(plan))
    ranking = recommended("lossy")
    assert keeps_optimizer(ranking.chosen.plan)


def test_feedback_is_milder_than_none() -> None:
    mild, wild = (deviation(Plan.parse(f"bsp/allreduce/{text}")) for text in ("int8+ef", "qsgd"))
    assert mild < wild


def test_biased_codecs_come_with_feedback() -> None:
    for plan in candidates(PROFILE.num_bytes, "stale"):
        stages = {stage.name for stage in plan.compression[1:]}
        keeps_rest = {"ef", "ef21", "choco", "deepsqueeze", "dcd", "ecd", "variance", "adacomp"}
        assert plan.compression[0].name != "topk" or stages & keeps_rest, plan


def test_an_unknown_allowance_is_refused() -> None:
    with pytest.raises(PlanError, match="lossless, lossy, stale"):
        recommend(PROFILE, SLOW, allow="everything")


def test_a_slow_wire_asks_for_compression_if_allowed() -> None:
    ranking = recommended("lossy")
    assert ranking.stock.step_s / ranking.chosen.step_s > 3
    assert not lacks_feedback(ranking.chosen.plan)
    assert not ranking.stays


def test_of_plans_about_as_good_the_mildest_is_chosen_and_none_whose_effect_is_a_guess() -> None:
    ranking = recommended("stale")
    best_s = min(careful_s(row) for row in ranking.rows if is_studied(row.plan) and keeps_optimizer(row.plan))
    assert is_studied(ranking.chosen.plan)
    assert careful_s(ranking.chosen) <= best_s * (1 + AS_GOOD)
    for row in ranking.rows:
        is_able = is_studied(row.plan) and keeps_optimizer(row.plan) and begins_as_it_goes_on(row.plan)
        if is_able and careful_s(row) <= best_s:
            assert deviation(row.plan) >= deviation(ranking.chosen.plan)


def test_lossless_keeps_the_mean_and_offers_more() -> None:
    ranking = recommended("lossless")
    plan = ranking.chosen.plan
    assert is_lossless(plan)
    assert ranking.chosen.step_s < ranking.stock.step_s
    assert any("With lossy plans allowed" in sentence for sentence in ranking.why)


def test_a_slow_wire_takes_fewer_bytes_for_the_same_mean() -> None:
    chosen = recommended("lossless").chosen
    assert chosen.plan.compression_text == "entropy"
    dense = predict(chosen.plan.having(compression=Plan.parse("bsp").compression), PROFILE, SLOW)
    assert chosen.step_s < 0.92 * dense.step_s


def test_a_fast_wire_stays_with_plain_all_reduce() -> None:
    ranking = recommended("lossless", FAST)
    assert ranking.stays
    assert ranking.chosen == ranking.stock == predict(STOCK, PROFILE, FAST)
    assert ranking.why[0].startswith("Stay with plain all-reduce")
    assert any(sentence.startswith("Do not compress here") for sentence in ranking.why)


def test_noise_hides_small_gains() -> None:
    faster = recommended("lossless")
    gain = 1 - faster.chosen.step_s / faster.stock.step_s
    noise = (gain + 0.02) * faster.stock.step_s / PROFILE.compute_s
    noisy = dataclasses.replace(PROFILE, noise=noise)
    assert rank(noisy, SLOW, "lossless").stays


def test_rows_are_sorted_and_nothing_faster_was_left_out() -> None:
    ranking = recommended("lossless")
    steps = [row.step_s for row in ranking.rows]
    assert steps == sorted(steps)
    assert len(ranking.rows) + ranking.pruned <= ranking.considered
    for plan in candidates(PROFILE.num_bytes, "lossless"):
        assert predict(plan, PROFILE, SLOW).step_s >= steps[0]


def test_of_equally_fast_plans_the_one_that_changes_training_least_is_chosen() -> None:
    ranking = recommend(PROFILE, SLOW, allow="lossy", by="step")  # by loss what was measured counts
    chosen = deviation(ranking.chosen.plan)
    for row in ranking.rows:
        if row.step_s <= ranking.rows[0].step_s * 1.1 and keeps_optimizer(row.plan):
            assert deviation(row.plan) * 1.06 >= chosen


def test_only_measured_programs_compete_once_any_is() -> None:
    fits = tuple(Fit(program=p, alpha_s=1e-3, beta_s_per_byte=4e-8) for p in ("native", "ring"))
    ranking = recommend(PROFILE, dataclasses.replace(SLOW, fits=fits), allow="lossy")
    assert not any("allreduce/topk" in str(row.plan) or "recursive" in str(row.plan) for row in ranking.rows)
    assert not any("formula" in sentence for sentence in ranking.why)


def test_a_faster_program_is_taken() -> None:
    fits = (
        Fit(program="native", alpha_s=5e-3, beta_s_per_byte=6e-8),
        Fit(program="ring", alpha_s=1e-3, beta_s_per_byte=4e-8),
    )
    ranking = rank(PROFILE, dataclasses.replace(SLOW, fits=fits), "lossless")
    best = next(row for row in ranking.rows if row.plan.compression_text == "none")
    # Where programs were measured, `allreduce` itself takes the fastest.
    assert str(best.plan.architecture) in ("allreduce", "allreduce:ring")
    native = best.plan.having(architecture=parse_member("architecture", "allreduce:native"))
    assert predict(native, PROFILE, ranking.cluster).step_s > 1.2 * best.step_s


NEAR, FAR = Plan.parse("bsp"), Plan.parse("local:8")


@pytest.mark.parametrize(("turn", "farthest"), [(37.0, 1000.0), (0.2, 1e-3)])
def test_turns_are_found_on_both_sides(turn: float, farthest: float) -> None:
    found = find_change(lambda factor: NEAR if factor < turn else FAR, farthest)
    assert found.factor == pytest.approx(turn, rel=0.021)


@pytest.mark.parametrize("farthest", [1000.0, 1e-3])
def test_where_nothing_turns_the_last_point_looked_at_is_told(farthest: float) -> None:
    found = find_change(lambda factor: NEAR, farthest)
    assert (found.factor, found.plan, found.last) == (None, NEAR, farthest)


def test_of_several_turns_the_nearest_is_told() -> None:
    found = find_change(lambda f: FAR if 1e-2 < f < 0.2 else NEAR, 1e-3)
    assert found.factor == pytest.approx(0.2, rel=0.021)


def test_the_plan_file_holds_everything(tmp_path: pathlib.Path) -> None:
    ranking = recommended("lossless")
    ranking.plan_file().write(tmp_path / "plan.yaml")
    read = PlanFile.read(tmp_path / "plan.yaml")
    assert read.plan == str(ranking.chosen.plan)
    assert read.why == (*ranking.why, *ranking.details)
    assert read.predicted["step_s"] == ranking.chosen.step_s
    assert read.measured["cluster"]["workers"] == 4
    assert len(read.measured["profile"]["parameters"]) == 12


@pytest.mark.parametrize("cluster", [SLOW, FAST], ids=["slow", "fast"])
def test_sentences_end_and_carry_numbers(cluster: Cluster) -> None:
    why = recommended("lossless", cluster).why
    assert all(sentence.endswith(".") for sentence in why)
    assert sum(any(letter.isdigit() for letter in sentence) for sentence in why) >= 3


@settings(max_examples=6, deadline=None)
@given(bandwidth=st.floats(1e5, 5e10), latency=st.floats(0, 1e-2), workers=st.integers(1, 6))
def test_the_choice_is_never_slower_than_plain_all_reduce(
    bandwidth: float, latency: float, workers: int
) -> None:
    ranking = rank(PROFILE, Cluster.uniform(workers, bandwidth, latency), "lossless")
    assert ranking.chosen.step_s <= ranking.stock.step_s
    assert ranking.stays == (departures(ranking.chosen.plan) == 0)


def test_links_that_differ_are_named() -> None:
    why = " ".join(recommended("lossless", LEVELS).details)
    assert "→ cluster0 (1 Gb/s) is the busiest" in why


def test_the_probability_is_even_among_equals_and_sure_against_the_slow() -> None:
    ranking = recommended("lossy")
    assert ranking.chance(ranking.chosen) == pytest.approx(0.5)
    assert ranking.chance(ranking.stock) < 0.06  # by formulas never less than 5 %
    assert 0.0 <= ranking.confidence <= 1.0
    assert any("the probability that the choice is truly" in sentence for sentence in ranking.details)
    said = " ".join((*ranking.why, *ranking.details))
    assert "100 %" not in said  # nothing was measured here
    assert "Not measured: the time of allreduce on this wire" in said  # as the table calls it


def test_the_verdict_has_the_plan_whole_so_that_it_can_be_pasted() -> None:
    plan = predict("bsp/allreduce/none/bytescheduler:4MiB,credit_bytes=16MiB,fuse_bytes=1MiB", PROFILE, SLOW)
    for allow in ("lossless", "lossy"):
        ranking = dataclasses.replace(recommended(allow), chosen=plan)
        verdict = next(explain(ranking, turns=False))
        assert verdict.startswith(f"Train with {plan.plan}: ")


def test_words_of_a_bandwidth_that_changes_nothing_say_what_stays() -> None:
    """Latencies stay: at 9 Tb/s buckets of 25 MiB may wait for them longer than for bytes."""
    tiny = Profile.uniform(layers=2, numel_per_layer=100, forward_s=1.0, backward_s=2.0)
    said = break_even(rank(tiny, FAST, "lossless"))
    assert "with latencies as they are" in said[0]
    assert "each twice the one before" in said[0]


def test_sharing_a_wire_makes_two_plans_errors_cancel() -> None:
    ring, same, other = (
        predict(f"bsp/allreduce:{how}", PROFILE, SLOW)
        for how in ("ring", "ring/none/mgwfbp", "halving-doubling/none/mgwfbp")
    )
    other = dataclasses.replace(other, step_s=same.step_s, low_s=same.low_s, high_s=same.high_s)
    assert chance(same, ring, PROFILE, SLOW) > chance(other, ring, PROFILE, SLOW) > 0.5


def test_curves_are_drawn_with_the_choice_on_top() -> None:
    ranking = recommended("lossy")
    bandwidths, drawn = curves(ranking)
    here = ranking.cluster.bandwidth_bytes_per_s
    assert drawn[0].plan == str(ranking.chosen.plan)
    assert min(abs(b / here - 1) for b in bandwidths) < 1e-9
    assert all(len(curve.steps_per_s) == len(bandwidths) for curve in drawn)
    lines = plot(bandwidths, drawn, here)
    assert {len(line) for line in lines[:14]} == {75}
    assert all(any(curve.plan in line for line in lines) for curve in drawn)


def test_a_model_that_does_not_fit_is_said_before_time() -> None:
    small = dataclasses.replace(SLOW, device_memory_bytes=10**7)
    with pytest.raises(PlanError, match=r"does not fit.*No time is predicted"):
        recommend(PROFILE, small)


HEAVY = dataclasses.replace(
    Profile.uniform(layers=8, numel_per_layer=400_000, forward_s=0.05, backward_s=0.1), device="gpu"
)


def test_where_one_worker_is_faster_than_all_it_says_so() -> None:
    """A hundredth of BERT-large on four GPUs with 1 Gb/s between them, as they have 160 ms of compute for 1.3 GB."""
    ranking = recommend(HEAVY, Cluster.uniform(4, 1.19e6, 5e-5))
    assert ranking.why[0].startswith(
        "Do not train this model on these 4 workers: one worker alone makes 6.67"
    )
    assert any("accumulating the gradients of 32 passes" in sentence for sentence in ranking.why)
    assert any("shown by emulation alone" in sentence for sentence in ranking.why)


def test_what_a_plan_adds_to_a_gpu_is_told() -> None:
    ranking = recommend(HEAVY, Cluster.uniform(4, 1.19e9, 5e-5))
    assert any("adds about 12.80 MB on each device" in sentence for sentence in ranking.details)


def test_the_work_of_all_is_told_against_one_and_against_fewer() -> None:
    ranking = recommended("lossless")
    scaling = scaling_of(ranking)
    assert scaling.speed_up == pytest.approx(4 * PROFILE.compute_s / ranking.chosen.step_s, rel=0.01)
    assert [usage.workers for usage in scaling.fewer] == [2]
    rates = [usage.passes_per_s for usage in scaling.accumulating]
    assert rates == sorted(rates)  # a slow wire: the more passes between two exchanges, the better
    assert f"4 workers do the work of {scaling.speed_up:.1f}" in ranking.why[0]


def test_a_price_says_what_training_costs_with_all_and_with_the_cheapest() -> None:
    ranking = dataclasses.replace(
        recommended("lossless"), cluster=dataclasses.replace(SLOW, prices=Prices(per_worker_hour=3.6))
    )
    (said,) = [sentence for sentence in explain(ranking) if sentence.startswith("At 3.6 per worker")]
    all_of_them = 1e6 * ranking.chosen.step_s * 3.6 / 3600  # each worker makes a quarter of the batches
    assert f"a million batches {Prices().show(all_of_them)}" in said
    assert said.endswith(f"({Prices().show(1e6 * PROFILE.compute_s * 3.6 / 3600)} with one worker alone).")


def test_a_part_of_a_cluster_keeps_whole_groups() -> None:
    assert smaller(LEVELS, 2).bandwidth_bytes_per_s == 10e9
    assert smaller(LEVELS, 4).workers_per_node == 2
    assert smaller(LEVELS, 1).workers == 1
    with pytest.raises(PlanError, match="no whole groups"):
        smaller(LEVELS, 3)


def test_a_part_of_a_cluster_is_joined_as_the_whole_is() -> None:
    """Else fewer workers are compared with all of them by another formula, or by another way for messages."""
    star = dataclasses.replace(FAST, nccl="infiniband", over="pinned", adding=Adding(slots=8))
    part = smaller(star, 2)
    assert dataclasses.replace(part, workers=star.workers) == star
    nodes = dataclasses.replace(preset("dgx-h100-sharp", 4), over="pinned")
    for workers in (1, 2, 8, 16):
        part = smaller(nodes, workers)
        assert (part.nccl, part.over) == ("infiniband", "pinned")
        named = [level.name for level in part.levels]
        assert part.adding is None or set(part.adding.levels) <= set(named)
    assert smaller(nodes, 16).adding == nodes.adding
    assert smaller(nodes, 8).adding == Adding(levels=("node",))


def test_what_is_bound_by_computing_does_not_wait_for_longer_than_it_computes() -> None:
    for cluster in CLUSTERS:
        for row in rank(PROFILE, cluster, "lossless").rows:
            assert row.bound_by != "compute" or row.exposed_s <= row.compute_s


def test_data_sheets_and_formulas_widen_the_interval() -> None:
    sure = predict(STOCK, PROFILE, FAST)
    unsure = predict(STOCK, dataclasses.replace(PROFILE, compute_uncertainty=0.4), FAST)
    assert unsure.high_s - unsure.low_s > 10 * (sure.high_s - sure.low_s)
    for plan in ("ssp:3/ps", "bsp/ps", "bsp/gossip"):
        found = predict(plan, PROFILE, SLOW)
        assert found.low_s < 0.95 * found.step_s, plan


def test_formulas_alone_do_not_prefer_servers() -> None:
    """The same bytes over the same lines: fewer latencies are no reason to leave all-reduce."""
    ranking = rank(PROFILE, Cluster.uniform(8, 3e9, 3e-5), "lossless")
    assert ranking.chosen.plan.architecture.name == "allreduce"


@pytest.mark.parametrize("name", ["gcp-a2-highgpu-8g", "survey-2080ti-10g", "aws-p4d", "dgx-h100"])
def test_known_hardware_is_planned_for_with_what_ifs_beyond_what_exists(name: str) -> None:
    small = Profile.uniform(layers=2, numel_per_layer=100_000, forward_s=0.001, backward_s=0.002)
    ranking = rank(small, preset(name, 2), "lossless")
    bandwidths, drawn = curves(ranking)
    assert max(bandwidths) == pytest.approx(30 * ranking.cluster.bandwidth_bytes_per_s)
    assert drawn
    assert break_even(ranking)


def test_slices_too_many_to_keep_in_order_are_for_those_who_name_them() -> None:
    large = Profile.uniform(layers=4, numel_per_layer=10**9, forward_s=1.0, backward_s=2.0)
    cluster = Cluster.uniform(4, 1e9, 1e-5)
    assert not competes(Plan.parse("bsp/allreduce/none/p3"), large, cluster)
    assert competes(Plan.parse("bsp/allreduce/none/p3:16MiB"), large, cluster)


@pytest.mark.parametrize("misspelt", [{"by": "losses"}, {"shares": "speeds"}])
def test_what_is_misspelt_is_not_taken_for_another(misspelt: dict[str, str]) -> None:
    with pytest.raises(PlanError, match="is not known; known: "):
        recommend(PROFILE, SLOW, **misspelt)


@pytest.mark.parametrize("workers", [4, 16])
def test_no_program_competes_that_loses_more_than_studies_saw(workers: int) -> None:
    """Round a ring every sum is encoded again at each hop: what studies saw of a codec was by `direct` or gathered."""
    cluster = Cluster.uniform(workers, 24e6, 1e-4)
    for compression in ("int2+ef", "int4+ef", "qsgd:7", "efsign+ef"):
        assert competes(Plan.parse(f"bsp/allreduce/{compression}"), PROFILE, cluster)
        assert not competes(Plan.parse(f"bsp/allreduce:ring/{compression}"), PROFILE, cluster)
    for compression in ("none", "bf16", "int8+ef"):
        assert competes(Plan.parse(f"bsp/allreduce:ring/{compression}"), PROFILE, cluster)
