"""How large the parts of `tightwire bench gpu` are, and what each finds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

PLANS = (
    "bsp",
    "bsp/allreduce:ring",
    "bsp/allreduce:direct",
    "bsp/allreduce/bf16",
    "bsp/allreduce/int8+ef",
    "bsp/allreduce/int4+ef",
    "bsp/allreduce/topk:0.01+ef",
    "bsp/allreduce/qsgd:7",
    "bsp/allreduce/powersgd:4+ef",
    "local:4",
    "bsp/gossip:exponential",
    "bsp/allreduce/none/bytescheduler:1MiB,4MiB",
)


@dataclass(frozen=True, kw_only=True)
class GpuPart:
    """One part of the bench.

    Attributes:
        name: of the part.
        ok: whether all that it asserts held.
        said: what it found, in a sentence.
        rows: its numbers.
        seconds: that it took.
    """

    name: str
    ok: bool
    said: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class GpuSetting:
    """How large everything is.

    Attributes:
        kind: of device.
        sizes: elements of kernels that are compared with the CPU's.
        timed_numel: elements of kernels that are timed.
        width: of the trained layers.
        steps: of training.
        message_bytes: of the message whose copy and wire are to overlap.
        plans: under which processes share the device.
        wide: width, and rows of a batch, of the model that attaching is to cost nothing beside.
        ends_s: of `time.perf_counter`, by when a part should have ended by itself.
    """

    kind: str = "cuda"
    sizes: tuple[int, ...] = (1025, 1_000_003, 1)
    timed_numel: int = 100_000_000
    width: int = 1024
    steps: int = 10
    message_bytes: int = 25_000_000
    plans: tuple[str, ...] = PLANS
    wide: int = 4096
    ends_s: float = float("inf")


EMULATED = GpuSetting(
    kind="traced",
    sizes=(1025,),
    timed_numel=100_000,
    width=24,
    steps=2,
    wide=24,
)
