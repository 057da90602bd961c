"""What is timed: a codec's two directions, what one would write in plain torch, and what bounds the time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from tightwire.answers import Member
from tightwire.catalogue import parse_member
from tightwire.compression import Codec
from tightwire.compression.dct import Cosines
from tightwire.errors import PlanError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Phase = Literal["encode", "decode"]
Action = Callable[[], object]
Ways = dict[Phase, Action]
POWER_SIDE = 1024  # of the square matrices that PowerSGD is timed on


@dataclass(frozen=True)
class Floor:
    """What a method cannot do without, done alone, where that is not a copy.

    Attributes:
        name: in reports.
        action: does it.
    """

    name: str
    action: Action


@dataclass(frozen=True)
class TimedKernel:
    """One method to be timed on some memory.

    Attributes:
        text: the method's.
        numel: elements that it is timed on.
        ours: its directions.
        stock: the same in plain torch, where there is a usual way.
        floors: what bounds the time, where that is not a copy.
    """

    text: str
    numel: int
    ours: Ways
    stock: Ways = field(default_factory=dict)
    floors: Mapping[Phase, Floor] = field(default_factory=dict)


def subject(text: str, x: Tensor) -> Callable[[], TimedKernel]:
    """Returns what builds the subject of a method on `x`, (numel,) float32.

    Raises:
        PlanError: the text names nothing that can be timed alone.
    """
    member = parse_member("compression", text)
    if isinstance(member, Codec):
        return lambda: _codec(member, x)
    if member.name in SPECIAL:
        return lambda: SPECIAL[member.name](member, x)
    raise PlanError(
        f"{text} is no codec, so it has no kernels of its own to time; "
        f"`tightwire methods` lists the codecs, and {', '.join(SPECIAL)} are timed too."
    )


def _codec(codec: Codec, x: Tensor) -> TimedKernel:
    import torch

    message = torch.empty(codec.wire_bytes(x.numel()), dtype=torch.uint8, device=x.device)
    return TimedKernel(
        text=str(codec),
        numel=x.numel(),
        ours={
            "encode": lambda: codec.encode(x, message, seed=1),
            "decode": lambda: codec.decode(message, x, add=True),
        },
        stock=stock_ways(codec, x),
        floors=_floors(codec, x),
    )


def _floors(codec: Codec, x: Tensor) -> dict[Phase, Floor]:
    import torch

    if not isinstance(codec, Cosines):
        return {}
    chunk = codec.chunk
    chunks = x[: x.numel() // chunk * chunk].view(-1, chunk)
    matrix, out = torch.randn(chunk, chunk, device=x.device), torch.empty_like(chunks)
    return {"encode": Floor("the transform by BLAS", lambda: torch.mm(chunks, matrix, out=out))}


def _powersgd(method: Member, x: Tensor) -> TimedKernel:
    """Times P ← M·Q, orthonormal P and Q ← Mᵀ·P on square matrices, against the two products alone."""
    import torch

    from tightwire.averaging._powersgd import PowerSGDAverager
    from tightwire.averaging.powersgd import PowerSGD
    from tightwire.buckets import plan_layout
    from tightwire.transport import Single

    assert isinstance(method, PowerSGD)
    side = min(POWER_SIDE, math.isqrt(x.numel()))
    count = max(1, x.numel() // side**2)
    matrices = {f"m{i}": torch.empty(side, side, device=x.device) for i in range(count)}
    (layout,) = plan_layout(matrices, [list(range(count))])
    averager = PowerSGDAverager(Single(), layout, rank=method.rank, tag=0)
    bucket = x[: count * side**2]
    views = [bucket[i * side**2 : (i + 1) * side**2].view(side, side) for i in range(count)]
    p, q = (torch.randn(shape, device=x.device) for shape in ((side, method.rank), (method.rank, side)))

    def products() -> None:
        for m in views:
            torch.mm(m, q.t(), out=p)
            torch.mm(p.t(), m, out=q)

    def encode() -> None:
        averager.project(bucket)
        averager.project_back(bucket)

    q_start = q.clone()

    def bounded() -> None:
        q.copy_(q_start)  # powers would overflow
        products()

    return TimedKernel(
        text=str(method),
        numel=bucket.numel(),
        ours={"encode": encode},
        floors={"encode": Floor("the two products", bounded)},
    )


def _sketch(method: Member, x: Tensor) -> TimedKernel:
    """Times filling a table and reading all estimates, against torch's additions at random lines of the table."""
    import torch

    from tightwire import kernels
    from tightwire.averaging.count_sketch import LANES, CountSketch

    assert isinstance(method, CountSketch)
    columns = method.columns(x.numel()) or LANES
    table, estimates = torch.zeros(method.rows, columns, device=x.device), torch.empty_like(x)
    lines = x[: x.numel() // LANES * LANES].view(-1, LANES)
    spots = torch.randint(columns // LANES, (method.rows, len(lines)), device=x.device)
    rows = table.view(method.rows, -1, LANES)
    loops = kernels.of(x)

    def add() -> None:
        for row, spot in zip(rows, spots, strict=True):
            row.index_add_(0, spot, lines)

    def look() -> None:
        for row, spot in zip(rows, spots, strict=True):
            torch.index_select(row, 0, spot, out=estimates[: lines.numel()].view(-1, LANES))

    return TimedKernel(
        text=str(method),
        numel=x.numel(),
        ours={
            "encode": lambda: loops.add_to_sketch(x, table.zero_(), 1),
            "decode": lambda: loops.estimate_from_sketch(table, estimates, 1),
        },
        floors={
            "encode": Floor("torch's index_add_, a row each", add),
            "decode": Floor("torch's index_select, a row each", look),
        },
    )


def _entropy(method: Member, x: Tensor) -> TimedKernel:
    """Times coding exponents and reading them, messages as long as they come."""
    import torch

    from tightwire import kernels
    from tightwire.kernels.formats import entropy_bound_bytes

    room = torch.empty(entropy_bound_bytes(x.numel(), x.itemsize), dtype=torch.uint8, device=x.device)
    loops, floats = kernels.of(x), torch.empty_like(x)
    message = room[: loops.encode_entropy(x, room)].clone()
    return TimedKernel(
        text=str(method),
        numel=x.numel(),
        ours={
            "encode": lambda: loops.encode_entropy(x, room),
            "decode": lambda: loops.decode_entropy(message, floats),
        },
    )


SPECIAL: dict[str, Callable[[Member, Tensor], TimedKernel]] = {
    "powersgd": _powersgd,
    "sketch": _sketch,
    "entropy": _entropy,
}


def stock_ways(codec: Codec, x: Tensor) -> Ways:
    """Returns what one would write in plain torch, with the same handling of the leftover, in place on `x`."""
    import torch

    from tightwire.compression import QSGD, BFloat16, Float16, Int8, TopK

    match codec:
        case BFloat16():
            return _stock_cast(x, torch.bfloat16)
        case Float16():
            return _stock_cast(x, torch.float16)
        case TopK():
            return _stock_topk(x, codec.kept(x.numel()))
        case Int8() if codec.rounding == "nearest":
            return _stock_int8(x, stochastic=False)
        case Int8() | QSGD(s=127):
            return _stock_int8(x, stochastic=True)
    return {}


def _stock_cast(x: Tensor, dtype: torch.dtype) -> Ways:
    half = x.to(dtype)

    def encode() -> None:
        half.copy_(x)
        x.sub_(half)

    return {"encode": encode, "decode": lambda: x.add_(half)}


def _stock_topk(x: Tensor, k: int) -> Ways:
    found = x.abs().topk(k, sorted=False).indices
    values = x[found]

    def encode() -> None:
        indices = x.abs().topk(k, sorted=False).indices
        values.copy_(x[indices])
        x[indices] = 0

    return {"encode": encode, "decode": lambda: x.index_add_(0, found, values)}


def _stock_int8(x: Tensor, *, stochastic: bool) -> Ways:
    import torch

    step = x.abs().max() / 127
    codes = (x / step).round().to(torch.int8)

    def encode() -> None:
        scaled = x / (x.abs().max() / 127)
        rounded = (scaled + torch.rand_like(scaled)).floor() if stochastic else scaled.round()
        codes.copy_(rounded)
        x.sub_(codes * step)

    return {"encode": encode, "decode": lambda: x.add_(codes * step)}
