"""How long codecs take, against a copy of the same memory and the stock torch way of doing the same, in one run.

Everything takes turns, round by round, so that what disturbs the machine disturbs all alike; medians count.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tightwire.compression import MEMBERS, Codec
from tightwire.errors import PlanError
from tightwire.plan import parse_member

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Phase = Literal["encode", "decode"]
# Every codec with its usual settings; a codec that is not here is measured with its defaults.
SETTINGS: dict[str, tuple[str, ...]] = {
    "int8": ("int8", "int8:rounding=stochastic"),
    "qsgd": ("qsgd", "qsgd:7"),
    "topk": ("topk:0.01", "topk:0.001"),
    "stc": ("stc:0.01",),
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One codec in one direction.

    Attributes:
        kernel: the codec's text.
        phase: `encode` leaves the leftover in its input; `decode` adds to its output.
        numel: float32 elements.
        seconds: median over rounds.
        memcpy_s: of a copy of the input, in the same rounds.
        ratio: seconds over memcpy_s.
        stock_s: of the same in plain torch; None where torch has no usual way.
    """

    kernel: str
    phase: Phase
    numel: int
    seconds: float
    memcpy_s: float
    ratio: float
    stock_s: float | None


def default_kernels() -> tuple[str, ...]:
    """Returns the text of every codec, with its usual settings."""
    names = [member.name for member in MEMBERS if issubclass(member, Codec)]
    return tuple(text for name in names for text in SETTINGS.get(name, (name,)))


def measure(
    kernels: tuple[str, ...], numel: int, rounds: int, on_round: Callable[[str], None] = lambda text: None
) -> list[Row]:
    """Times codecs on one core over `numel` normally distributed float32.

    Raises:
        PlanError: a text that names no codec.
    """
    import torch

    codecs = [_codec(text) for text in kernels]
    with _one_thread(torch):
        bench = _Bench(torch.randn(numel, generator=torch.Generator().manual_seed(0)))
        for codec in codecs:
            on_round(str(codec))
            bench.run(codec, rounds)
    return bench.rows


def _codec(text: str) -> Codec:
    member = parse_member("compression", text)
    if not isinstance(member, Codec):
        raise PlanError(f"{text} is no codec, so it has no kernels; known: {', '.join(default_kernels())}.")
    return member


@contextmanager
def _one_thread(torch: object) -> Iterator[None]:
    before = torch.get_num_threads()  # type: ignore[attr-defined]
    torch.set_num_threads(1)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.set_num_threads(before)  # type: ignore[attr-defined]


class _Bench:
    """Memory that all measurements share, and the rows so far."""

    def __init__(self, source: Tensor) -> None:
        self.rows: list[Row] = []
        self._source = source
        self._x = source.clone()
        self._copy = source.clone()

    def run(self, codec: Codec, rounds: int) -> None:
        import torch

        numel = self._x.numel()
        message = torch.empty(codec.wire_bytes(numel), dtype=torch.uint8)
        ours: dict[Phase, Callable[[], object]] = {
            "encode": lambda: codec.encode(self._x, message, seed=1),
            "decode": lambda: codec.decode(message, self._x, add=True),
        }
        stock = stock_ways(codec, self._x)
        times: dict[str, list[float]] = {key: [] for key in ("memcpy", *ours, *(f"stock {p}" for p in stock))}
        # The first round compiles, and touches memory for the first time; it does not count.
        for counted in [False] + [True] * rounds:
            for key, action in self._actions(ours, stock):
                self._x.copy_(self._source)
                spent_s = _time(action)
                if counted:
                    times[key].append(spent_s)
        median_s = {key: statistics.median(values) for key, values in times.items()}
        self.rows += [self._row(codec, phase, median_s) for phase in ours]

    def _actions(
        self, ours: dict[Phase, Callable[[], object]], stock: dict[Phase, Callable[[], object]]
    ) -> Iterator[tuple[str, Callable[[], object]]]:
        yield "memcpy", lambda: self._copy.copy_(self._x)
        yield from ours.items()
        for phase, action in stock.items():
            yield f"stock {phase}", action

    def _row(self, codec: Codec, phase: Phase, median_s: dict[str, float]) -> Row:
        return Row(
            kernel=str(codec),
            phase=phase,
            numel=self._x.numel(),
            seconds=median_s[phase],
            memcpy_s=median_s["memcpy"],
            ratio=median_s[phase] / median_s["memcpy"],
            stock_s=median_s.get(f"stock {phase}"),
        )


def _time(action: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    action()
    return time.perf_counter() - began_s


def stock_ways(codec: Codec, x: Tensor) -> dict[Phase, Callable[[], object]]:
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


def _stock_cast(x: Tensor, dtype: torch.dtype) -> dict[Phase, Callable[[], object]]:
    half = x.to(dtype)

    def encode() -> None:
        half.copy_(x)
        x.sub_(half)

    return {"encode": encode, "decode": lambda: x.add_(half)}


def _stock_topk(x: Tensor, k: int) -> dict[Phase, Callable[[], object]]:
    found = x.abs().topk(k, sorted=False).indices
    values = x[found]

    def encode() -> None:
        indices = x.abs().topk(k, sorted=False).indices
        values.copy_(x[indices])
        x[indices] = 0

    return {"encode": encode, "decode": lambda: x.index_add_(0, found, values)}


def _stock_int8(x: Tensor, *, stochastic: bool) -> dict[Phase, Callable[[], object]]:
    import torch

    step = x.abs().max() / 127
    codes = (x / step).round().to(torch.int8)

    def encode() -> None:
        scaled = x / (x.abs().max() / 127)
        rounded = (scaled + torch.rand_like(scaled)).floor() if stochastic else scaled.round()
        codes.copy_(rounded)
        x.sub_(codes * step)

    return {"encode": encode, "decode": lambda: x.add_(codes * step)}
