import dataclasses
import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tightwire import kernels
from tightwire.catalogue import catalogue, parse_compression
from tightwire.compression import Codec, Int8, TopK, compile_kernels, compiling
from tightwire.errors import DeviceError, PlanError, TensorError
from tightwire.plan import Plan

GATHER = "bsp/allreduce:allgather/"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("topk:0", "give one in"),
        ("topk:1.5", "give one in"),
        ("topk:nan", "give one in"),
        ("topk", "ratio"),
        ("int8:block=7", "multiple of 8"),
        ("int8:block=0", "multiple of 8"),
        ("int8:rounding=up", "nearest or stochastic"),
        ("ef", "alone compresses nothing"),
        ("ef+topk:0.1", "alone compresses nothing"),
        ("none+ef", "lossless"),
        ("topk:0.1+ef+ef", "twice"),
        ("topk:0.1+int8", "more than one codec"),
    ],
)
def test_refusals_say_why(text: str, reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        Plan.parse(GATHER + text)


@pytest.mark.parametrize("text", ["ef", "none+ef", "topk:0.1+ef+ef", "topk:0.1+int8+ef"])
def test_nearest_legal_plan_is_legal(text: str) -> None:
    with pytest.raises(PlanError) as caught:
        Plan.parse(GATHER + text)
    nearest = str(caught.value).rpartition("Nearest legal: ")[2].removesuffix(".")
    assert str(Plan.parse(nearest)) == nearest


@pytest.mark.parametrize("text", ["none", "bf16+ef", "int8:256,rounding=stochastic", "topk:0.01+ef"])
def test_text_round_trips(text: str) -> None:
    stages = parse_compression(text)
    assert parse_compression("+".join(map(str, stages))) == stages


@given(st.integers(0, 10**9), st.floats(0, 1, exclude_min=True))
def test_topk_keeps_the_ceiling(numel: int, ratio: float) -> None:
    kept = TopK(ratio).kept(numel)
    assert kept == (max(1, math.ceil(ratio * numel)) if numel else 0)
    assert kept <= numel
    assert TopK(ratio).wire_bytes(numel, 2) == 6 * kept


def test_int8_takes_a_byte_each_and_a_step_per_block() -> None:
    assert [Int8().wire_bytes(n) for n in (0, 1, 1024, 1025)] == [0, 5, 1028, 1033]


def test_topk_refuses_a_message_whose_indices_are_wrong() -> None:
    codec, out = TopK(0.5), torch.ones(4)
    with pytest.raises(TensorError, match="ascend"):
        codec.decode(torch.full((codec.wire_bytes(4),), 0xFF, dtype=torch.uint8), out)
    assert torch.equal(out, torch.ones(4))


def test_float16_saturates_and_keeps_the_rest() -> None:
    (codec,) = parse_compression("fp16")
    x, message, out = torch.tensor([1e6, -1e6, 65519.0]), torch.empty(6, dtype=torch.uint8), torch.empty(3)
    codec.encode(x, message)  # type: ignore[attr-defined]
    codec.decode(message, out)  # type: ignore[attr-defined]
    assert out.tolist() == [65504.0, -65504.0, 65504.0]
    assert x.tolist() == [1e6 - 65504, 65504 - 1e6, 15.0]


def test_warm_up_says_so_when_it_compiles(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compile_kernels(Int8())
    caplog.clear()
    assert 0 <= compile_kernels(Int8()) < 2
    assert not caplog.text
    coded, missing, asked = compiling._coded, [0], threading.Semaphore(0)

    def compiled() -> int:
        asked.release()
        return missing[0]

    def slowly(codec: Codec, x: torch.Tensor) -> torch.Tensor:
        for _ in range(3):  # at the start, and twice by whoever watches
            assert asked.acquire(timeout=10)
        assert not caplog.text  # what is found on disk may take long to load, beside others
        missing[0] += 1
        ends_s = time.monotonic() + 10
        while not caplog.text and time.monotonic() < ends_s:
            time.sleep(0.005)
        return coded(codec, x)

    monkeypatch.setattr(kernels, "compiled", compiled)
    monkeypatch.setattr(compiling, "_SLOW_S", 0.01)
    monkeypatch.setattr(compiling, "_coded", slowly)
    compile_kernels(TopK(0.01), torch.bfloat16)
    assert "the kernels of topk:0.01 for cpu are being compiled" in caplog.text


def test_kernels_that_are_not_on_disk_are_counted(tmp_path: Path) -> None:
    code = (
        "from tightwire import kernels; from tightwire.compression import BFloat16, compile_kernels\n"
        "assert not kernels.compiled(); compile_kernels(BFloat16()); print(kernels.compiled())"
    )
    counts = [
        int(subprocess.run([sys.executable, "-c", code], env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)},
                           capture_output=True, text=True, check=True, timeout=150).stdout)
        for _ in range(2)
    ]  # fmt: skip
    assert counts[0] > 0
    assert counts[1] == 0


def test_kernels_that_a_compiler_made_wrong_are_refused_with_its_version() -> None:
    right = torch.linspace(-1, 1, 64)
    compiling.require_right(Int8(), right * 1.001, right, torch.device("cuda"))
    for wrong in (right.roll(1), torch.full_like(right, torch.nan)):
        with pytest.raises(
            DeviceError, match=r"the kernels of int8 on cuda are off by .* Triton .* miscompiles"
        ):
            compiling.require_right(Int8(), wrong, right, torch.device("cuda"))


RATIOS = sorted(
    name
    for name, member in catalogue("compression").items()
    if "ratio" in {f.name for f in dataclasses.fields(member)}
)


def with_ratio(name: str, ratio: str) -> str:
    first = "0.5," if name in ("strom", "threshold") else ""  # these ask for more than a ratio
    return f"{name}:{first}ratio={ratio}"


@pytest.mark.parametrize("ratio", ["0", "-0.1", "1.5", "nan", "inf", "-inf"])
@pytest.mark.parametrize("name", RATIOS)
def test_every_ratio_is_bounded(name: str, ratio: str) -> None:
    with pytest.raises(PlanError, match=r"give (one|a|shares|ratio)|in \(0, 1\]"):
        parse_compression(with_ratio(name, ratio))


CODECS_WITH_RATIO = [
    name for name in RATIOS if isinstance(parse_compression(with_ratio(name, "0.5"))[0], Codec)
]


def test_some_codecs_have_a_ratio() -> None:
    assert len(CODECS_WITH_RATIO) >= 8


@pytest.mark.parametrize("ratio", ["1e-9", "1.0"])
@pytest.mark.parametrize("name", CODECS_WITH_RATIO)
def test_every_ratio_keeps_at_least_one_element_and_at_most_all(name: str, ratio: str) -> None:
    sender = parse_compression(with_ratio(name, ratio))[0]
    assert isinstance(sender, Codec)
    for numel in (1, 7, 1000):
        x = torch.arange(1.0, numel + 1)
        whole, message = x.clone(), torch.empty(sender.wire_bytes(numel), dtype=torch.uint8)
        sender.encode(x, message)
        out = torch.zeros(numel)
        sender.decode(message, out)
        assert message.numel() > 0
        assert out.isfinite().all()
        if not sender.unbiased:
            torch.testing.assert_close(out + x, whole)
