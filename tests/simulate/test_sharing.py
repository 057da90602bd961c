"""What a device and an exchange take from each other, by hand-computed examples."""

import dataclasses

import pytest

from tightwire.cluster import Cluster, Level
from tightwire.plan import Plan
from tightwire.planner.explain_devices import explain_devices
from tightwire.profile import Profile
from tightwire.profile.devices import DEVICES
from tightwire.profile.values import PRIOR_PASS_S_PER_ELEMENT, CodecCost
from tightwire.simulate import predict
from tightwire.simulate.memory import added_bytes, landing_bytes
from tightwire.simulate.sharing import COPY_LATENCY_S, crossing_s

MIB = 2**20
# One gradient of 64 MiB; one pass over memory is free, and workers are equally fast, so that figures stay short.
PLAIN = dataclasses.replace(
    Profile.uniform(layers=1, numel_per_layer=16 * MIB, forward_s=0.1, backward_s=0.2),
    pass_s_per_element=0.0,
    noise=0.0,
)
WIRE, PCIE = 1e9, 8e9
DEVICE = dataclasses.replace(PLAIN, copy_s_per_byte=1 / PCIE, nccl_slowdown=1.25, kernel_share=0.5)
TWO = Cluster.uniform(2, WIRE, 0.0)


def over(way: str, cluster: Cluster = TWO) -> Cluster:
    return dataclasses.replace(cluster, over=way)  # type: ignore[arg-type]


def test_the_longer_of_copies_and_wire_and_one_piece_of_the_other() -> None:
    assert crossing_s(8.0, 4.0, steps=1, pieces=4) == 8 + 4 / 4
    assert crossing_s(4.0, 8.0, steps=1, pieces=4) == 8 + 4 / 4
    # A step's first piece is there before its last has left: a pipeline without a gap.
    assert crossing_s(8.0, 4.0, steps=2, pieces=4) == 8 + 2 / 4
    # One piece a step: copied, moved, copied back, and only then the next.
    assert crossing_s(8.0, 4.0, steps=2, pieces=1) == 12


def test_a_native_sum_by_pinned_memory_copies_each_value_once_each_way() -> None:
    found = predict("bsp/allreduce:native/none/sequential", DEVICE, over("pinned"))
    # 64 MiB both ways in 64 chunks of 1 MiB, beside 64 MiB on the wire (a ring of two sends each half twice).
    copies_s, wire_s = 2 * 64 * MIB / PCIE, 64 * MIB / WIRE
    assert found.exposed_s == pytest.approx(wire_s + copies_s / 64 + 2 * COPY_LATENCY_S)
    assert found.bound_by == "compute"


def test_where_copies_take_longer_they_set_the_pace() -> None:
    slow = dataclasses.replace(DEVICE, copy_s_per_byte=1 / 1e8)
    found = predict("bsp/allreduce:native/none/sequential", slow, over("pinned"))
    copies_s, wire_s = (
        2 * 64 * MIB / 1e8,
        64 * MIB / 1e8,
    )  # no link is faster than a device's line to its host
    assert found.exposed_s == pytest.approx(copies_s + wire_s / 64 + 2 * COPY_LATENCY_S)
    assert found.bound_by == "copies"


def test_a_program_of_ours_copies_what_it_sends_in_its_own_pieces() -> None:
    found = predict("bsp/allreduce:ring/none/sequential", DEVICE, over("pinned"))
    # Two steps of 32 MiB, each in 128 pieces of 256 KiB.
    wire_s, copies_s = 64 * MIB / WIRE, 2 * 64 * MIB / PCIE
    assert found.exposed_s == pytest.approx(wire_s + copies_s / 2 / 128 + 4 * COPY_LATENCY_S)


def test_only_the_message_crosses_under_a_codec() -> None:
    dense, coded = (
        predict(f"bsp/allreduce:allgather/{codec}/sequential", DEVICE, over("pinned"))
        for codec in ("none", "topk:0.01")
    )
    without = predict("bsp/allreduce:allgather/topk:0.01/sequential", DEVICE, over("nccl"))
    # 0.01 × 16 Mi × 8 bytes in two pieces of 0.67 MB, both ways.
    copied_s = 2 * (16 * MIB // 100 * 8) / PCIE
    assert coded.exposed_s - without.exposed_s == pytest.approx(copied_s / 2 + 2 * COPY_LATENCY_S, rel=0.01)
    assert dense.exposed_s > 40 * coded.exposed_s


def test_kernels_of_nccl_and_of_codecs_slow_compute_while_they_run() -> None:
    whole = dataclasses.replace(
        PLAIN, copy_s_per_byte=1 / PCIE, nccl_slowdown=1.25, backward_s=0.2,
        parameters=tuple(
            dataclasses.replace(PLAIN.parameters[0], name=f"p{i}", ready_s=0.01 * i, numel=16 * MIB) for i in (1, 20)
        ),
    )  # fmt: skip
    plan = "bsp/allreduce:native/none/fusion:1MiB"
    by_nccl, by_host, alone = (
        predict(plan, profile, cluster)
        for profile, cluster in (
            (whole, over("nccl")),
            (whole, over("pinned")),
            (dataclasses.replace(whole, nccl_slowdown=1.0), over("nccl")),
        )
    )
    # The first bucket is on the wire for 67 ms: so long, compute goes at 1 / 1.25 of its speed.
    assert by_nccl.compute_s - alone.compute_s == pytest.approx(0.2 * 64 * MIB / WIRE, rel=1e-6)
    assert by_host.compute_s == pytest.approx(alone.compute_s)  # engines copy, and the host sums
    busy = dataclasses.replace(whole, pass_s_per_element=1e-9, kernel_share=0.5, nccl_slowdown=1.0)
    idle = dataclasses.replace(busy, kernel_share=0.0)
    lost_s = predict(plan, busy, over("nccl")).compute_s - predict(plan, idle, over("nccl")).compute_s
    # Of both buckets one pass, that of the check; filling them has made backward longer than the second's way.
    assert lost_s == pytest.approx(0.5 * 32 * MIB * 1e-9, rel=1e-6)


def test_what_is_shared_is_as_sure_as_its_factors() -> None:
    unsure = dataclasses.replace(DEVICE, kernel_share=1.0, pass_s_per_element=1e-9, sharing_uncertainty=0.5)
    unsure = dataclasses.replace(unsure, parameters=(dataclasses.replace(unsure.parameters[0], ready_s=0.0),))
    wide = predict("bsp", unsure, TWO)
    narrow = predict("bsp", dataclasses.replace(unsure, sharing_uncertainty=0.0), TWO)
    assert wide.step_s == narrow.step_s
    assert wide.high_s > narrow.high_s


def test_pinned_messages_take_no_nvlink_and_nccl_inside_takes_it_for_the_inner_leg_alone() -> None:
    nodes = Cluster.of_levels(
        Level(name="node", workers=4, bandwidth_bytes_per_s=300e9),
        Level(name="cluster", workers=8, bandwidth_bytes_per_s=1e9),
    )
    plan = "bsp/allreduce:hierarchical/int8+ef/sequential"
    near, pinned = (predict(plan, DEVICE, over(way, nodes)) for way in ("nccl-inside", "pinned"))
    # Inside a node a ring moves 6/4 of 64 MiB: by NVLink, or at PCIe's rate with copies that take twice as long.
    inside = 1.5 * 64 * MIB
    gain_s = pinned.exposed_s - near.exposed_s
    assert gain_s == pytest.approx(2 * inside / PCIE - inside / 300e9, rel=0.05)


def test_host_memory_has_none_of_it() -> None:
    for way in ("auto", "pinned", "nccl-inside"):
        assert predict("bsp", PLAIN, over(way)).step_s == predict("bsp", PLAIN, TWO).step_s
        assert not list(explain_devices(PLAIN, over(way)))


@pytest.mark.parametrize(
    ("way", "told"),
    [
        ("auto", "leave them by NCCL, whose kernels make compute take 1.19 times as long while they run;"),
        ("pinned", "by pinned memory and Gloo (192 Gb/s of PCIe each way, copied piece by piece"),
        ("nccl-inside", "while they run, inside a node, and by pinned memory and Gloo"),
    ],
)
def test_what_is_assumed_is_told(way: str, told: str) -> None:
    (sentence,) = explain_devices(DEVICES["a100"].priced(PLAIN), over(way))
    assert told in sentence
    assert "a published mean and a bound" in sentence


def test_a_device_prices_a_profile() -> None:
    priced = DEVICES["a100"].priced(PLAIN)
    assert priced.pass_s_per_element == pytest.approx(3 * 4 / 2.039e12)
    assert (priced.copy_s_per_byte, priced.nccl_slowdown, priced.kernel_share) == (1 / 24e9, 1.19, 1.0)


@pytest.mark.parametrize("plan", ["bsp/gossip:exponential", "ssp:3/ps:shards=2"])
def test_what_is_averaged_in_host_memory_crosses_once_each_way(plan: str) -> None:
    free = dataclasses.replace(
        DEVICE, copy_s_per_byte=1e-15
    )  # a device, all of whose copies take next to nothing
    found, alone = predict(plan, DEVICE, TWO), predict(plan, free, TWO)
    assert found.step_s - alone.step_s == pytest.approx(2 * 64 * MIB / PCIE, rel=1e-3)


def test_shards_on_devices_spare_copies_under_a_codec_and_cost_some_without() -> None:
    def copies_s(plan: str) -> float:
        free = dataclasses.replace(DEVICE, copy_s_per_byte=1e-15)
        cost = CodecCost(compression="bf16", encode_s_per_element=0.0, decode_s_per_element=0.0)
        return sum(
            sign * predict(plan, dataclasses.replace(p, codecs=(cost,)), TWO).step_s
            for sign, p in ((1, DEVICE), (-1, free))
        )

    whole_s = 64 * MIB / PCIE
    assert copies_s("ssp:3/ps:shards=1/bf16") == pytest.approx(2 * whole_s, rel=1e-3)  # as they are
    # Messages alone, by the worker's PCIe and by the server's.
    assert copies_s("ssp:3/ps:servers=1,on_device=true/bf16") == pytest.approx(4 * whole_s / 2, rel=1e-3)
    assert copies_s("ssp:3/ps:servers=1,on_device=true") == pytest.approx(4 * whole_s, rel=1e-3)


def test_in_host_memory_a_shards_optimizer_works_at_the_hosts_rate() -> None:
    gpu = dataclasses.replace(DEVICE, optimizer_s=0.01, pass_s_per_element=PRIOR_PASS_S_PER_ELEMENT / 50)
    plain = dataclasses.replace(gpu, optimizer_s=0.0)
    for plan, times in (("ssp:0/ps:servers=1", 50), ("ssp:0/ps:servers=1,on_device=true", 1)):
        found = predict(plan, gpu, TWO).step_s - predict(plan, plain, TWO).step_s
        assert found == pytest.approx(0.01 * times, rel=1e-6)


def test_memory_that_lands_is_that_of_each_lanes_largest_bucket() -> None:
    profile = dataclasses.replace(
        PLAIN,
        parameters=tuple(
            dataclasses.replace(PLAIN.parameters[0], name=f"p{i}", numel=n * MIB) for i, n in ((0, 1), (1, 8))
        ),
    )
    ring = Plan.parse("bsp/allreduce:ring/none/fusion:1MiB")
    # By pinned memory 32 pieces of 256 KiB are awaited at most; by NCCL, a step's at a time.
    assert landing_bytes(ring, profile, over("pinned")) == 32 * MIB // 4
    assert landing_bytes(ring, profile, over("nccl")) == MIB // 4
    assert landing_bytes(Plan.parse("bsp/allreduce:native"), profile, over("pinned")) == 0
    assert added_bytes(ring, profile, over("pinned")) == 4 * 9 * MIB + 8 * MIB
    small = dataclasses.replace(profile, parameters=profile.parameters[:1])
    assert (
        landing_bytes(ring, small, over("pinned")) == 16 * MIB // 4
    )  # 8 pieces to be added, 8 that are done
