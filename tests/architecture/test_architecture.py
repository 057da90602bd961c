import subprocess
import sys

import pytest

from tightwire.architecture import PROGRAMS, AllReduce
from tightwire.catalogue import parse_compression
from tightwire.compression import Codec
from tightwire.errors import PlanError
from tightwire.plan import Plan

CODECS = ("none", "bf16", "int8", "topk:0.01")


def codec_of(text: str) -> Codec:
    codec = parse_compression(text)[0]
    assert isinstance(codec, Codec)
    return codec


@pytest.mark.parametrize(
    ("text", "n", "program"),
    [
        ("none", 8, "native"),
        ("bf16", 8, "ring"),
        ("int8", 8, "ring"),
        ("int8", 64, "direct"),
        ("int2", 2, "ring"),
        ("int2", 8, "direct"),
        ("efsign", 8, "direct"),
        ("natural", 4, "direct"),
        ("qsgd:7", 8, "allgather"),
        ("qsgd:7", 64, "direct"),
        ("terngrad", 8, "allgather"),
        ("randomk:0.01", 8, "ring"),
        ("topk:0.01", 8, "allgather"),
    ],
)
def test_auto_keeps_the_error_of_the_codec(text: str, n: int, program: str) -> None:
    assert AllReduce().program_name(codec_of(text), n) == program
    assert AllReduce("allgather").program_name(codec_of(text), n) == "allgather"


@pytest.mark.parametrize("compression", CODECS)
@pytest.mark.parametrize("program", ["auto", *PROGRAMS])
def test_a_plan_is_legal_or_names_one_that_is(program: str, compression: str) -> None:
    text = f"bsp/allreduce:{program}/{compression}"
    try:
        plan = Plan.parse(text)
    except PlanError as error:
        nearest = str(error).split("Nearest legal: ")[1].rstrip(".").split(", or ")
        for other in nearest:
            assert str(Plan.parse(other)) == other
    else:
        assert Plan.parse(str(plan)) == plan


def test_messages_without_a_sum_are_refused_by_name() -> None:
    with pytest.raises(
        PlanError, match=r"topk:0.01 cannot travel by ring: its messages have no elementwise sum"
    ):
        Plan.parse("bsp/allreduce:ring/topk:0.01")


def test_native_needs_messages_that_the_backend_sums() -> None:
    with pytest.raises(
        PlanError, match=r"int8 cannot travel by native.*\nNearest legal: bsp/allreduce:ring/int8\."
    ):
        Plan.parse("bsp/allreduce:native/int8")


def test_unknown_programs_are_told_the_known_ones() -> None:
    with pytest.raises(PlanError, match="allreduce:star is no known program; known: auto, allgather"):
        Plan.parse("bsp/allreduce:star")


def test_programs_need_no_torch() -> None:
    modules = "tightwire.architecture, tightwire.architecture.allreduce.traffic"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
