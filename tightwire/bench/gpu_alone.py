"""A world of one on a GPU: attached against plain, in numbers, in time and in memory."""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor

from tightwire._attach import attach
from tightwire.bench.gpu_setting import GpuPart, GpuSetting
from tightwire.bench.gpu_worker import GpuJob, batch, build, optimizer_of
from tightwire.devices import device_named
from tightwire.transport import Single


def world_of_one(setting: GpuSetting) -> GpuPart:
    """Trains alone, attached and plain: the same parameters to the bit, at the same speed."""
    job = GpuJob(plans=(), kind=setting.kind, width=setting.wide, rows=setting.wide)
    device = torch.device(setting.kind, 0)
    where = device_named(device)
    ended: list[Tensor] = []
    times: list[list[float]] = [[], []]
    for attached in (False, True):
        model = build(job, device)
        optimizer = optimizer_of(model)
        run = attach(model, optimizer, "bsp", transport=Single()) if attached else None
        for step in range(4 * setting.steps):
            x = batch(job, 0, step, device)
            where.wait(where.mark(device))
            start_s = time.perf_counter()
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            where.wait(where.mark(device))
            times[attached].append(time.perf_counter() - start_s)
        if run is not None:
            run.close()
        ended.append(torch.cat([p.detach().flatten() for p in model.parameters()]).cpu())
    same = torch.equal(*ended)
    ratio = statistics.median(times[1][2:]) / statistics.median(times[0][2:])
    first = times[1][0] / statistics.median(times[1][2:])
    said = "the same bits" if same else "OTHER NUMBERS"
    if setting.kind != "cuda":
        return GpuPart(name="", ok=same, said=f"{said}; an emulated device has no speed")
    return GpuPart(
        name="", ok=same and ratio <= 1.01, said=f"{said}; {ratio - 1:+.2%} over plain (asked 1 %)",
        rows=[{"ratio": ratio, "first_step_over_typical": first}],
    )  # fmt: skip


def memory(setting: GpuSetting) -> GpuPart:
    """Compares what is allocated at most by an attached dense run and by a plain one."""
    if setting.kind != "cuda":
        return GpuPart(name="", ok=True, said="not run: an emulated device allocates host memory")
    job = GpuJob(plans=(), kind="cuda", width=setting.width)
    device = torch.device("cuda", 0)
    where = device_named(device)
    peaks: list[int] = []
    for attached in (False, True):
        model = build(job, device)
        optimizer = optimizer_of(model)
        where.forget_peak(device)
        before = where.memory([device]).allocated_bytes
        run = attach(model, optimizer, "bsp/allreduce:ring", transport=Single()) if attached else None
        for step in range(3):
            optimizer.zero_grad()
            model(batch(job, 0, step, device)).square().mean().backward()
            optimizer.step()
        peaks.append(where.memory([device]).peak_bytes - before)
        if run is not None:
            run.close()
        del model, optimizer
    gradients = 4 * (setting.width**2 + setting.width) * job.depth
    added = peaks[1] - peaks[0]
    return GpuPart(
        name="", ok=added <= 1.05 * gradients, said=f"{added:,} bytes added; the buckets are {gradients:,}",
        rows=[{"added_bytes": added, "bucket_bytes": gradients}],
    )  # fmt: skip
