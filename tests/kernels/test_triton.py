"""The kernels for CUDA: on a GPU where there is one, else under Triton's interpreter on the processor."""

# ruff: noqa: E402 (the interpreter is chosen before Triton is imported)

import json
import math
import os
import subprocess
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported
pytest.importorskip("triton", reason="Triton is not installed: pip install tightwire[gpu]")

from tests.kernels import test_sparse
from tests.kernels.test_kernels import signatures
from tests.laws.test_codecs import DTYPES, codec_of, difficult, normal
from tightwire import kernels
from tightwire.bench.kernels import compile_only
from tightwire.compression import Codec
from tightwire.errors import LabError
from tightwire.kernels import flag_of, reference
from tightwire.kernels import triton as gpu
from tightwire.kernels.formats import Grid
from tightwire.kernels.triton import sparse as gpu_sparse

# The interpreter computes with numpy, which warns of what floats do.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

# One or more for every kernel and every constant that shapes it.
DENSE = [
    "int8",
    "int4:rounding=stochastic",
    "int2:64,rounding=stochastic",
    "qsgd:7",
    "nuqsgd",
    "nuqsgd:126,block=64",
    "terngrad",
    "bf16",
    "fp16",
    "fp8",
    "fp8:e5m2,block=64",
    "natural",
    "efsign",
    "onebit:64",
    "eden:2,block=512",
]
SPARSE = [
    "topk:0.3",
    "blocktopk:0.3,block=64",
    "blocktopk:0.01",
    "threshold:2",
    "threshold:0.5,ratio=0.01",
    "randomk:0.3",
    "wangni:0.05",
    "strom:0.5",
    "stc:0.3",
    "dct",
    "dct:9,chunk=128",
]


def with_kernels(module: types.ModuleType, action: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "of", lambda tensor: module)
        return action()


def round_trip(codec: Codec, x: Tensor, out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the message, what it decodes to in a place where something is, and the leftover."""
    size = codec.wire_bytes(x.numel(), x.element_size())
    # At an odd address, as messages behind one another are.
    message = torch.full((size + 1,), 0xA5, dtype=torch.uint8, device=x.device)[1:]
    leftover, decoded = x.clone(), out.clone()
    codec.encode(leftover, message, seed=5)
    codec.decode(message, decoded, add=True)
    return message, decoded, leftover


def assert_same(text: str, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    x, out = x.to(DEVICE), normal(x.numel(), x.dtype, seed=1).to(DEVICE)
    ours, theirs = (
        with_kernels(module, lambda: round_trip(codec_of(text), x, out), monkeypatch)
        for module in (gpu, reference)
    )
    for mine, defined in zip(ours, theirs, strict=True):
        if x.isfinite().all():
            assert torch.equal(mine, defined)
        else:  # what NaNs carry is nobody's promise
            assert torch.equal(mine.isnan(), defined.isnan())
    if not x.isfinite().all():
        assert torch.equal(ours[1].nan_to_num(), theirs[1].nan_to_num())


def blocks_of_all_kinds() -> Tensor:
    """Returns blocks of what codecs get wrong, each of 1024 equal elements or such, and a short one."""
    rows = [row.repeat(2)[:1024] for row in difficult(torch.float32).values()]
    return torch.cat([*rows, normal(77)])


def test_every_kernel_is_here_with_the_same_signature() -> None:
    assert signatures(gpu) == signatures(reference)


def test_cuda_tensors_have_these_kernels() -> None:
    tensor: Any = types.SimpleNamespace(device=torch.device("cuda", 0))
    assert kernels.of(tensor) is gpu


def test_without_triton_torch_is_used_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.warns(RuntimeWarning, match="Triton is not installed"):
        assert kernels._module.__wrapped__("triton") is reference


@pytest.mark.parametrize("text", DENSE)
def test_blocks_are_those_of_the_reference(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_same(text, blocks_of_all_kinds(), monkeypatch)
    for numel in (1, 7, 1000):
        assert_same(text, normal(numel), monkeypatch)


@pytest.mark.parametrize("text", SPARSE)
def test_choices_are_those_of_the_reference(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for numel in (1, 7, 4500):
        assert_same(text, normal(numel), monkeypatch)
    for dtype in DTYPES[1:]:
        assert_same(text, normal(1000, dtype), monkeypatch)
    for x in difficult(torch.float32).values():
        assert_same(text, x, monkeypatch)


@pytest.mark.parametrize(
    "text", ["int8", "qsgd:7", "bf16", "fp8", "natural", "efsign", "onebit:64", "topk:0.3"]
)
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_so(text: str, poison: float, monkeypatch: pytest.MonkeyPatch) -> None:
    x = normal(2100)
    x[1500] = poison
    assert_same(text, x, monkeypatch)


@pytest.mark.parametrize("name", test_sparse.inputs())
def test_selection_is_exact(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_sparse, "_MOST_PROGRAMS", 2)  # so that each counts several tiles
    x = test_sparse.inputs()[name][-9000:].to(DEVICE)
    for k in (1, 100, 8999):
        found = []
        for module in (gpu, reference):
            left, message = x.clone(), torch.empty(8 * k, dtype=torch.uint8, device=DEVICE)
            module.select_largest(left, message, k)
            found.append((left, message))
        for ours, defined in zip(*found, strict=True):
            assert torch.equal(ours, defined)


def doubted() -> bool:
    """Whether a kernel met a message that cannot be, since this was last asked."""
    flag = flag_of(torch.device(DEVICE))
    was_set = bool(flag.item())
    flag.zero_()
    return was_set


@pytest.mark.parametrize("indices", [[3, 2], [1, 1], [-1, 2], [0, 8]])
def test_impossible_indices_change_nothing(indices: list[int]) -> None:
    payload = torch.tensor(indices, dtype=torch.int32).view(torch.uint8)
    message = torch.cat([payload, torch.zeros(8, dtype=torch.uint8)]).to(DEVICE)
    out = torch.ones(8, device=DEVICE)
    gpu.scatter_largest(message, out, 2, True)
    assert doubted()
    assert torch.equal(out, torch.ones_like(out))


@pytest.mark.parametrize("count", [-1, 3, 2**31 - 1])
def test_impossible_counts_change_nothing(count: int) -> None:
    payload = torch.tensor([count, 0, 1, 0, 0], dtype=torch.int32).view(torch.uint8).to(DEVICE)
    out = torch.ones(8, device=DEVICE)
    for message, k in ((payload, 2), (payload[:4], 0)):
        gpu.scatter_sparse(message, out, k, True)
        assert doubted()
    assert torch.equal(out, torch.ones_like(out))


@pytest.mark.parametrize("inner", [[3, 2, 0], [1, 1, 0], [0, 4, 0], [0, 1, 3]])
def test_impossible_places_in_blocks_change_nothing(inner: list[int]) -> None:
    payload = torch.tensor(inner, dtype=torch.int16).view(torch.uint8)
    message = torch.cat([payload, torch.zeros(12, dtype=torch.uint8)]).to(DEVICE)
    out = torch.ones(7, device=DEVICE)  # a block of 4, of which 2 are sent, and one of 3, of which 1
    assert not reference.scatter_blocks(message, out, 4, (2, 1), False)
    gpu.scatter_blocks(message, out, 4, (2, 1), True)
    assert doubted()
    assert torch.equal(out, torch.ones_like(out))


@pytest.mark.parametrize("block", [8, 1024])
def test_votes_are_those_of_the_reference(block: int) -> None:
    numel, found = 2500, []
    votes = [normal(numel, seed=rank).round() for rank in range(4)]
    votes[1][:1024] = 0
    votes[2][7] = torch.nan
    for module in (gpu, reference):
        size = -(-numel // block) + -(-numel // 8)
        ballots = torch.zeros(4, size, dtype=torch.uint8, device=DEVICE)
        for rank, (x, ballot) in enumerate(zip(votes, ballots, strict=True)):
            module.encode_votes(x.to(DEVICE), ballot, block, rank)
        outcome, out = torch.zeros_like(ballots[0]), torch.ones(numel, device=DEVICE)
        module.count_votes(ballots, outcome, numel, block, 9)
        module.decode_votes(outcome, out, block, True)
        found.append((ballots, outcome, out.nan_to_num(9)))
    for ours, defined in zip(*found, strict=True):
        assert torch.equal(ours, defined)


@pytest.mark.parametrize("rows", [1, 3, 5])
def test_sketches_are_those_of_the_reference(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for numel in (1, 16, 1003):
        x, found = normal(numel).to(DEVICE), []
        for module in (gpu, reference):
            table, estimates = torch.ones(rows, 16 * 9, device=DEVICE), torch.empty(numel, device=DEVICE)
            module.add_to_sketch(x, table, 11)
            module.estimate_from_sketch(table, estimates, 11)
            found.append((table, estimates))
        for ours, defined in zip(*found, strict=True):
            assert torch.equal(ours, defined)


@pytest.mark.parametrize(("codes", "levels"), [(torch.int8, 127), (torch.int32, 2**28)])
@pytest.mark.parametrize("stochastic", [False, True])
def test_shared_steps_are_those_of_the_reference(codes: torch.dtype, levels: int, stochastic: bool) -> None:
    x, found = normal(2500), []
    step = 2.0 ** math.ceil(math.log2(float(x.abs().max()))) / levels
    for module in (gpu, reference, kernels.of(torch.empty(0))):
        left, sent, out = x.clone(), torch.empty(2500, dtype=codes), torch.empty(2500)
        if module is gpu:
            left, sent, out = left.to(DEVICE), sent.to(DEVICE), out.to(DEVICE)
        assert module.largest_bits(left) == int(x.abs().max().view(torch.int32))
        module.encode_fixed(left, sent, step, levels, stochastic, 7)
        module.decode_fixed(sent.to(torch.int16 if levels == 127 else torch.int32), out, step)
        found.append((sent.cpu(), left.cpu(), out.cpu()))
    for others in found[1:]:
        assert all(torch.equal(mine, defined) for mine, defined in zip(found[0], others, strict=True))
    assert (found[0][1].abs() <= step * (1 if stochastic else 0.5001)).all()


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
def test_planes_are_those_of_the_reference(dtype: torch.dtype) -> None:
    for numel in (1, 7, 5001):
        bits = (torch.arange(numel) * 0x12345678ABCDEF - 7 * numel).to(dtype).to(DEVICE)
        planes = [torch.empty(bits.nbytes, dtype=torch.uint8, device=DEVICE) for _ in range(2)]
        for module, message in zip((gpu, reference), planes, strict=True):
            module.split_planes(bits, message)
        assert torch.equal(*planes)
        back = torch.empty_like(bits)
        gpu.join_planes(planes[0], back)
        assert torch.equal(back, bits)


def test_waves_that_cannot_be_change_nothing() -> None:
    inner = torch.tensor([3, 2], dtype=torch.int16).view(torch.uint8)
    message, out = (
        torch.cat([inner, torch.zeros(8, dtype=torch.uint8)]).to(DEVICE),
        torch.ones(64, device=DEVICE),
    )
    gpu.decode_cosines(message, out, torch.ones(64, 64, device=DEVICE), 2, 0)
    assert doubted()
    assert torch.equal(out, torch.ones_like(out))


def test_floats_without_loss_pass_the_host() -> None:
    x = normal(5000).to(DEVICE)
    message, out = torch.empty(21_000, dtype=torch.uint8, device=DEVICE), torch.empty_like(x)
    length = gpu.encode_entropy(x, message)
    assert gpu.decode_entropy(message[:length], out)
    assert torch.equal(out, x)


def test_blocks_too_large_for_registers_are_left_to_torch() -> None:
    x, grid = normal(40_000).to(DEVICE), Grid(block=1 << 15, bits=8, levels=127)
    message, again = (
        torch.zeros(grid.wire_bytes(40_000), dtype=torch.uint8, device=DEVICE) for _ in range(2)
    )
    gpu.quantise(x.clone(), message, grid, 0)
    reference.quantise(x.clone(), again, grid, 0)
    assert torch.equal(message, again)


def test_keys_are_the_same_bits_with_a_sign() -> None:
    from tightwire.kernels._keys import keys_of
    from tightwire.kernels.triton._parts import keys

    for seed in range(50):
        assert tuple(np.array(keys(seed), np.int32).view(np.uint32)) == keys_of(seed)


@pytest.mark.timeout(600)  # Triton keeps what it compiled
def test_all_compile_for_cuda_without_fused_or_flushed_floats(pytestconfig: pytest.Config) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    code = (
        "import dataclasses, json; from tightwire.kernels.triton.ahead import compile_all; "
        f"rows = compile_all((90,), once={not pytestconfig.getoption('--many')}); "
        "print(json.dumps([dataclasses.asdict(row) for row in rows]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=590,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads(done.stdout.splitlines()[-1])
    calls = {row["kernel"] for row in rows}
    assert {"quantise", "encode_votes", "transform", "add_to_sketch", "split_planes"} <= calls
    assert all(row["capability"] == 90 and 0 < row["registers"] <= 255 for row in rows)
    # Eight bytes are a load and a store beside a kernel's own thousands; more are registers that do not suffice.
    assert [row for row in rows if row["spill_bytes"] > 8] == []


def test_interpreted_kernels_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(LabError, match="unset it"):
        compile_only((80,))
