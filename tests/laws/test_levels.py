"""Laws 1, 2 and 9 where messages are compressed across nodes alone, and the programs that levels ask for."""

import pytest
import torch

from tests.laws.test_collectives import Outcome, check_laws, codec_of, inputs
from tightwire.architecture import AllReduce, Architecture, ParameterServer, Setting, check
from tightwire.averaging import all_reduce_averager
from tightwire.buckets import plan_layout
from tightwire.errors import PlanError
from tightwire.plan import Plan
from tightwire.transport import Counting, Transport, run_threads
from tightwire.transport.striped import Striped


def average(
    transport: Transport, architecture: Architecture, text: str, numel: int, per_node: int
) -> Outcome:
    counting, codec = Counting(transport), codec_of(text)
    layout = plan_layout({"x": torch.zeros(numel)}, [[0]])[0]
    setting = Setting(num_ranks=transport.size, workers_per_node=per_node)
    reducer = all_reduce_averager(architecture, codec, counting, bucket=layout, tag=4, setting=setting)
    given = inputs(numel, transport.rank, torch.float32)
    for _ in range(2):
        work, mean = given.clone(), torch.full_like(given, 7.0)
        counting.tally.clear()
        reducer.run(work, mean, seed=1)
    leftover = torch.zeros_like(work) if reducer.lossless else work
    return Outcome(
        given=given, mean=mean, leftover=leftover, predicted=reducer.bytes_sent, counted=counting.bytes_sent
    )


@pytest.mark.parametrize("text", ["none", "bf16", "int8", "int8:rounding=stochastic", "topk:0.01"])
@pytest.mark.parametrize(("n", "per_node"), [(4, 2), (6, 3), (6, 2), (3, 1), (4, 4)])
def test_mean_traffic_and_agreement_by_levels(text: str, n: int, per_node: int) -> None:
    def worker(transport: Transport) -> list[Outcome]:
        return [
            average(transport, AllReduce("hierarchical"), text, numel, per_node)
            for numel in (1, 1000, 40_097)
        ]

    for outcomes in zip(*run_threads(n, worker, deadline_s=20), strict=True):
        check_laws(list(outcomes), "hierarchical", codec_of(text))


@pytest.mark.parametrize("text", ["none", "bf16", "int8"])
@pytest.mark.parametrize(("n", "per_node"), [(4, 2), (5, 3), (6, 2)])
def test_mean_traffic_and_agreement_of_servers_by_nodes(text: str, n: int, per_node: int) -> None:
    def worker(transport: Transport) -> list[Outcome]:
        return [
            average(transport, ParameterServer(hierarchical=True), text, numel, per_node)
            for numel in (1, 40_097)
        ]

    for outcomes in zip(*run_threads(n, worker, deadline_s=20), strict=True):
        check_laws(list(outcomes), "ps", codec_of(text))


def test_the_last_node_may_have_fewer_workers_where_nothing_is_compressed() -> None:
    outcomes = run_threads(
        5, lambda t: average(t, AllReduce("hierarchical"), "none", 10_001, 3), deadline_s=20
    )
    check_laws(outcomes, "hierarchical", codec_of("none"))
    with pytest.raises(PlanError, match="nodes of 3, 2 workers cannot share a compressed bucket"):
        run_threads(5, lambda t: average(t, AllReduce("hierarchical"), "int8", 10_001, 3), deadline_s=20)


def test_a_node_sends_others_the_least_there_is() -> None:
    program = AllReduce("hierarchical").program_for(
        codec_of("none"), 8000, 4, Setting(num_ranks=8, workers_per_node=4)
    )
    check(program)
    sizes = program.chunk_sizes(8000)
    across = sum(sizes[t.chunk] for t in program.transfers if t.src < 4 <= t.dst)
    assert across == 2 * (2 - 1) / 2 * 8000


def test_levels_must_be_known() -> None:
    with pytest.raises(PlanError, match=r"no launcher told \(LOCAL_WORLD_SIZE\).*hierarchical,shape=2x4"):
        AllReduce("hierarchical").program_for(codec_of("none"), 8, 4, Setting(num_ranks=8))
    shaped = AllReduce("hierarchical", shape="2x4")
    assert shaped.nodes(Setting(num_ranks=8)) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    with pytest.raises(
        PlanError, match="hierarchical of shape 2x4 has 8 ranks, and there are 6; legal for 6"
    ):
        shaped.program_for(codec_of("none"), 8, 4, Setting(num_ranks=6))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("allreduce:ring,shape=2x2", "ring has no shape"),
        ("allreduce:torus,shape=2by2", "is no shape; write its sides"),
        ("allreduce:ring,streams=0", "outside 1…16"),
        ("allreduce:ring,order=0-2-2", "write every rank once"),
        ("allreduce:auto,order=0-1", "for a program of our own"),
    ],
)
def test_arguments_that_cannot_be_are_refused(text: str, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        Plan.parse(f"bsp/{text}")


def test_arguments_read_back() -> None:
    for text in (
        "bsp/allreduce:torus,shape=2x4",
        "bsp/allreduce:blueconnect,shape=2x2x2,streams=2",
        "bsp/allreduce:ring,order=0-2-1-3",
        "bsp/allreduce:hierarchical/topk:0.01+ef",
    ):
        assert Plan.parse(str(Plan.parse(text))) == Plan.parse(text)


def test_an_order_renames_the_ranks() -> None:
    program = AllReduce("ring", order="0-2-1-3").program(codec_of("none"), 4)
    check(program)
    assert {(t.src, t.dst) for t in program.transfers} == {(0, 2), (2, 1), (1, 3), (3, 0)}
    check(AllReduce("allgather", order="0-2-1-3").program(codec_of("none"), 4))
    with pytest.raises(PlanError, match="has 4 ranks, and there are 3"):
        AllReduce("ring", order="0-2-1-3").program(codec_of("none"), 3)


def test_several_streams_carry_the_same_mean() -> None:
    architecture = AllReduce("halving-doubling", streams=3)

    def worker(transport: Transport) -> Outcome:
        striped = architecture.connect(transport, Setting(num_ranks=transport.size))
        assert isinstance(striped, Striped)
        return average(striped, architecture, "none", 300_001, 0)

    check_laws(run_threads(4, worker, deadline_s=20), "halving-doubling", codec_of("none"))


def test_auto_goes_by_size_and_by_what_was_measured() -> None:
    none, int8, auto = codec_of("none"), codec_of("int8"), AllReduce()
    plain = Setting(num_ranks=4)
    assert [auto.choose(none, numel, 4, plain) for numel in (1000, 100_000)] == [
        "recursive-doubling",
        "native",
    ]
    assert auto.choose(int8, 1000, 4, plain) == "ring"
    costs = {
        "native": (1e-3, 1.2e-8),
        "ring": (2e-3, 1e-8),
        "recursive-doubling": (3e-4, 1e-8),
        "direct": (5e-4, 1.1e-8),
    }
    measured = Setting(num_ranks=4, costs=costs)
    chosen = [auto.choose(none, num_bytes // 4, 4, measured) for num_bytes in (2**10, 2**18, 2**26)]
    assert chosen == ["recursive-doubling", "direct", "ring"]
    assert auto.choose(int8, 2**24, 4, measured) == "ring"
    assert AllReduce("ring").choose(none, 1, 4, measured) == "ring"


def test_sparse_messages_travel_decoded_where_that_is_smaller() -> None:
    """And mean the same: nothing is exchanged for the codec that was asked for."""
    auto, half = AllReduce(), codec_of("topk:0.5")
    assert auto.travels_decoded(half, 10_000, 4, 8)
    assert not auto.travels_decoded(codec_of("topk:0.01"), 10_000, 4, 8)
    assert not AllReduce("allgather").travels_decoded(half, 10_000, 4, 8)

    def worker(transport: Transport) -> None:
        found = [average(transport.channel(), a, "topk:0.5", 3000, 0) for a in (auto, AllReduce("allgather"))]
        torch.testing.assert_close(found[0].mean, found[1].mean)
        assert torch.equal(found[0].leftover, found[1].leftover)
        assert found[0].counted < found[1].counted

    run_threads(5, worker, deadline_s=20)
