"""How long codecs take, against a copy of the same memory and the stock torch way of doing the same, in one run.

Everything takes turns, round by round, so that what disturbs the machine disturbs all alike; medians count.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tightwire.bench.subjects import Action, Floor, Phase, TimedKernel, subject
from tightwire.catalogue import catalogue
from tightwire.compression import Codec
from tightwire.devices import DEVICES, device_named
from tightwire.errors import LabError

if TYPE_CHECKING:
    from torch import Tensor

    from tightwire.kernels.triton.ahead import Compiled

# Every codec with its usual settings; a codec that is not here is measured with its defaults.
SETTINGS: dict[str, tuple[str, ...]] = {
    "int8": ("int8", "int8:rounding=stochastic"),
    "qsgd": ("qsgd", "qsgd:7"),
    "topk": ("topk:0.01", "topk:0.001"),
    "stc": ("stc:0.01",),
}
# Methods that talk while they compress, of which only what they compute is timed.
REDUCTIONS = ("powersgd:4", "sketch:0.01", "entropy")


@dataclass(frozen=True, kw_only=True)
class KernelRow:
    """One codec in one direction.

    Attributes:
        kernel: the codec's text.
        phase: `encode` leaves the leftover in its input; `decode` adds to its output.
        numel: float32 elements.
        seconds: median over rounds; of processor time on cpu.
        memcpy_s: of a copy of the input, in the same rounds.
        ratio: seconds over memcpy_s.
        stock_s: of the same in plain torch; None where torch has no usual way.
        floor: what bounds the time where that is not a copy; empty where it is.
        floor_s: of that alone, in the same rounds.
        floor_ratio: seconds over floor_s.
        device: where all of it is, `cpu` or `cuda`.
    """

    kernel: str
    phase: Phase
    numel: int
    seconds: float
    memcpy_s: float
    ratio: float
    stock_s: float | None
    floor: str = ""
    floor_s: float | None = None
    floor_ratio: float | None = None
    device: str = "cpu"


def default_kernels() -> tuple[str, ...]:
    """Returns the text of every codec, with its usual settings, or those of its own example, and reductions."""
    codecs = [member for member in catalogue("compression").values() if issubclass(member, Codec)]
    known = [text for text in REDUCTIONS if text.partition(":")[0] in catalogue("compression")]
    usual = (SETTINGS.get(m.name, (m.example.partition("+")[0] or m.name,)) for m in codecs)
    return (*(text for texts in usual for text in texts), *known)


def measure(
    kernels: tuple[str, ...],
    numel: int,
    rounds: int,
    on_round: Callable[[str], None] = lambda text: None,
    device: str = "cpu",
) -> list[KernelRow]:
    """Times codecs on one core, or on a GPU, over `numel` normally distributed float32.

    Raises:
        PlanError: a text that names no codec.
        LabError: a device that is not here.
    """
    import torch

    _require(device)
    with _one_thread(torch):
        bench = _Bench(torch.randn(numel, generator=torch.Generator().manual_seed(0)).to(device))
        subjects = [subject(text, bench.x) for text in kernels]
        for text, make in zip(kernels, subjects, strict=True):
            on_round(text)
            bench.run(make(), rounds)
    return bench.rows


def compile_only(
    capabilities: Sequence[int], on_kernel: Callable[[str], None] = lambda name: None
) -> list[Compiled]:
    """Compiles every kernel for CUDA, which needs no GPU.

    Args:
        capabilities: of devices, as in 80 for 8.0.
        on_kernel: is told what is compiled.

    Raises:
        LabError: there is no compiler here, or code that is not exact.
    """
    import importlib.util
    import os

    if importlib.util.find_spec("triton") is None:
        raise LabError(
            "kernels for CUDA are compiled by Triton, which is not installed: pip install tightwire[gpu]."
        )
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        raise LabError("TRITON_INTERPRET is set, and interpreted kernels are not compiled: unset it.")
    from tightwire.kernels.triton.ahead import compile_all

    return compile_all(capabilities, on_kernel)


def _require(device: str) -> None:
    import torch

    if device not in ("cpu", "cuda"):
        raise LabError(
            f"there are kernels for cpu and cuda, and none for {device}: give --device one of those."
        )
    if not DEVICES[device].count():
        raise LabError(
            f"torch {torch.__version__} sees no CUDA device here: run this where there is one and torch was built "
            "for it, or leave out --device cuda."
        )


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
        self.rows: list[KernelRow] = []
        self.x = source.clone()
        self._source = source
        self._copy = source.clone()
        self._device = device_named(source.device)

    def run(self, subject: TimedKernel, rounds: int) -> None:
        actions = dict(self._actions(subject))
        times: dict[str, list[float]] = {key: [] for key in actions}
        # The first round compiles, and touches memory for the first time; it does not count.
        for counted in [False] + [True] * rounds:
            for key, action in actions.items():
                self.x.copy_(self._source)
                spent_s = self._device.time_s(action, self.x.device)
                if counted:
                    times[key].append(spent_s)
        median_s = {key: statistics.median(values) for key, values in times.items()}
        self.rows += [self._row(subject, phase, median_s) for phase in subject.ours]

    def _actions(self, subject: TimedKernel) -> Iterator[tuple[str, Action]]:
        copied = self._source[: subject.numel]
        yield "memcpy", lambda: self._copy[: subject.numel].copy_(copied)
        yield from subject.ours.items()
        for phase, action in subject.stock.items():
            yield f"stock {phase}", action
        for phase, floor in subject.floors.items():
            yield f"floor {phase}", floor.action

    def _row(self, subject: TimedKernel, phase: Phase, median_s: dict[str, float]) -> KernelRow:
        floor: Floor | None = subject.floors.get(phase)
        floor_s = median_s.get(f"floor {phase}")
        return KernelRow(
            kernel=subject.text,
            phase=phase,
            numel=subject.numel,
            seconds=median_s[phase],
            memcpy_s=median_s["memcpy"],
            ratio=median_s[phase] / median_s["memcpy"],
            stock_s=median_s.get(f"stock {phase}"),
            floor=floor.name if floor else "",
            floor_s=floor_s,
            floor_ratio=median_s[phase] / floor_s if floor_s else None,
            device=self.x.device.type,
        )
