"""Kernels on a GPU: the CPU's bits, at the speed of its memory."""

from __future__ import annotations

import time
from dataclasses import asdict

import torch
from torch import Tensor

from tightwire.bench.gpu_setting import GpuPart, GpuSetting
from tightwire.bench.kernels import default_kernels, measure
from tightwire.catalogue import catalogue, parse_member
from tightwire.compression import Codec

TIMED = ("topk:0.01", "int8", "int4", "qsgd:7")


def kernels_right(setting: GpuSetting) -> GpuPart:
    """Encodes and decodes on the device and on the CPU: messages, leftovers and sums must be the same to the bit."""
    wrong: list[str] = []
    count = 0
    members = [m for m in catalogue("compression").values() if issubclass(m, Codec)]
    todo = [(numel, m) for numel in setting.sizes for m in members]
    for numel, member in todo:
        if time.perf_counter() > setting.ends_s:
            break
        codec = parse_member("compression", (member.example.partition("+")[0]) or member.name)
        assert isinstance(codec, Codec)
        count += 1
        x = torch.randn(numel, generator=torch.Generator().manual_seed(numel))
        try:
            same = all(map(torch.equal, _coded(codec, x.clone()), _coded(codec, x.to(setting.kind))))
        except RuntimeError as error:  # a kernel that does not compile or run is one codec's
            wrong.append(f"{codec} at {numel}: {str(error)[:200]}")
            continue
        if not same:
            wrong.append(f"{codec} at {numel}")
    said = f"{count - len(wrong)} of {len(todo)} codecs and sizes give the CPU's bits"
    left = f"; {len(todo) - count} were not reached in time" if count < len(todo) else ""
    ok = not wrong and count == len(todo)
    return GpuPart(name="", ok=ok, said=said + left + (f"; not {', '.join(wrong)}" if wrong else ""))


def _coded(codec: Codec, x: Tensor) -> list[Tensor]:
    message = torch.zeros(codec.wire_bytes(x.numel(), x.element_size()), dtype=torch.uint8, device=x.device)
    out = torch.ones_like(x)
    codec.encode(x, message, seed=7)
    codec.decode(message, out, add=True)
    return [message.cpu(), out.cpu(), *([] if codec.lossless else [x.cpu()])]


def kernels_fast(setting: GpuSetting) -> GpuPart:
    """Times codecs against a copy of the same memory, and top-k against torch's way."""
    if setting.kind != "cuda":
        return GpuPart(name="", ok=True, said="not run: an emulated device has no speed")
    known = set(default_kernels())
    rows = [
        asdict(row)
        for row in measure(tuple(t for t in TIMED if t in known), setting.timed_numel, 9, device="cuda")
    ]
    encoded = [row for row in rows if row["phase"] == "encode"]
    slow = [f"{row['kernel']} {row['ratio']:.2f}" for row in encoded if row["ratio"] > 2.5]
    top = next(row for row in encoded if row["kernel"] == "topk:0.01")
    gain = (top["stock_s"] or 0.0) / top["seconds"]
    ratios = ", ".join(f"{row['kernel']} {row['ratio']:.2f}" for row in encoded)
    said = f"encode over copy: {ratios} (asked 2.5); "
    return GpuPart(
        name="",
        ok=not slow and gain >= 20,
        said=f"{said}top-k is {gain:.0f} × torch's way (asked 20)",
        rows=rows,
    )
