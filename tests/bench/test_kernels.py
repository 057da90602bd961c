import json

import pytest
import torch

from tests.command_line import refused, tightwire
from tightwire.bench.kernels import REDUCTIONS, default_kernels, measure
from tightwire.bench.subjects import stock_ways
from tightwire.catalogue import parse_compression
from tightwire.compression import MEMBERS, Codec
from tightwire.errors import LabError, PlanError


def test_every_codec_is_measured_by_default() -> None:
    names = {text.partition(":")[0] for text in default_kernels()}
    codecs = {member.name for member in MEMBERS if issubclass(member, Codec)}
    assert codecs <= names <= codecs | {text.partition(":")[0] for text in REDUCTIONS}


def test_rows_have_both_phases_and_leave_the_threads_as_they_were() -> None:
    threads = torch.get_num_threads()
    rows = measure(("bf16", "int4"), 1000, rounds=2)
    assert [(row.kernel, row.phase) for row in rows] == [
        ("bf16", "encode"),
        ("bf16", "decode"),
        ("int4", "encode"),
        ("int4", "decode"),
    ]
    assert all(row.numel == 1000 and row.ratio == row.seconds / row.memcpy_s for row in rows)
    assert [row.stock_s is None for row in rows] == [False, False, True, True]
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("text", ["topk:0.1", "bf16", "fp16"])
def test_stock_way_does_the_same(text: str) -> None:
    (codec,) = parse_compression(text)
    assert isinstance(codec, Codec)
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    ours, stock = x.clone(), x.clone()
    codec.encode(ours, torch.empty(codec.wire_bytes(1000), dtype=torch.uint8))
    stock_ways(codec, stock)["encode"]()
    assert torch.equal(ours, stock)


def test_a_method_bounded_by_memory_is_timed_beside_a_copy() -> None:
    rows = measure(("entropy",), 2000, rounds=1)
    assert [row.phase for row in rows] == ["encode", "decode"]
    assert all(row.floor_s is None and row.ratio > 0 for row in rows)


@pytest.mark.parametrize("text", [text for text in REDUCTIONS if text != "entropy"])
def test_methods_that_talk_are_timed_beside_their_floor(text: str) -> None:
    rows = measure((text,), 2000, rounds=1)
    assert rows[0].phase == "encode"
    assert all(row.floor and row.floor_s and row.floor_ratio == row.seconds / row.floor_s for row in rows)


def test_a_stage_is_refused() -> None:
    with pytest.raises(PlanError, match="ef is no codec"):
        measure(("ef",), 10, rounds=1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_asked_for_in_vain() -> None:
    with pytest.raises(LabError, match="sees no CUDA device here"):
        measure(("bf16",), 10, rounds=1, device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_is_timed() -> None:
    rows = measure(("int8", "topk:0.1"), 10_000, rounds=2, device="cuda")
    assert all(row.device == "cuda" and row.seconds > 0 for row in rows)


def test_command_prints_one_object_last() -> None:
    result = tightwire("bench", "kernels", "--codecs", "none", "--sizes", "100", "--rounds", "1", "--json")
    assert result.code == 0
    rows = json.loads(result.stdout.splitlines()[-1])["rows"]
    assert {"kernel", "phase", "numel", "seconds", "memcpy_s", "ratio", "stock_s"} <= set(rows[0])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--codecs", "nothing"],
        ["--sizes", "ten"],
        ["--device", "abacus"],
        ["--compile-only", "--capabilities", "7.5"],
    ],
)
def test_bad_input_exits_with_one_sentence(arguments: list[str]) -> None:
    assert arguments[-1] in refused("bench", "kernels", *arguments)
