"""Measures what a device and the exchanges on it take from each other: copies to its host, kernels beside compute."""

from __future__ import annotations

import dataclasses
import statistics
import threading

import torch

from tightwire.devices import Device, device_named
from tightwire.profile.devices import NCCL_SLOWDOWN, SHARING_UNCERTAINTY
from tightwire.profile.values import Profile

# Large enough for the full rate of PCIe and of memory.
COPY_BYTES = 64 * 2**20
PASS_NUMEL = 2**23
# Sides of the products that stand for compute, and how many of them.
SIDE, PRODUCTS = 2048, 32
SAMPLES = 3


def with_device(
    profile: Profile, at: torch.device, *, copy_bytes: int = COPY_BYTES, side: int = SIDE
) -> Profile:
    """Returns a profile with what was measured of the device that it was made on; the same one in host memory.

    What NCCL's kernels take cannot be measured alone: that stays a published mean.

    Args:
        profile: of a model on it.
        at: the device.
        copy_bytes: of a timed copy.
        side: of the timed products' matrices.
    """
    device = device_named(at)
    if device.is_host:
        return profile
    return dataclasses.replace(
        profile,
        copy_s_per_byte=max(1e-15, _copy_s(device, at, copy_bytes) / copy_bytes),
        nccl_slowdown=NCCL_SLOWDOWN,
        kernel_share=_kernel_share(device, at, side),
        sharing_uncertainty=SHARING_UNCERTAINTY,
    )


def _copy_s(device: Device, at: torch.device, num_bytes: int) -> float:
    on_device = torch.zeros(num_bytes, dtype=torch.uint8, device=at)
    room = device.pinned(num_bytes)
    times = [device.time_s(lambda: device.copy(on_device, room), at) for _ in range(SAMPLES + 1)][1:]
    device.give_back(room, device.mark(at))
    return statistics.median(times)


def _kernel_share(device: Device, at: torch.device, side: int) -> float:
    """Returns which share of passes' own time products lose that run beside them, between 0 and 1."""
    a = torch.ones(side, side, device=at, dtype=torch.bfloat16)
    out = torch.empty_like(a)
    x, y = torch.zeros(2, PASS_NUMEL * side // SIDE, device=at)

    def compute() -> None:
        for _ in range(PRODUCTS):
            torch.mm(a, a, out=out)

    def passes(times: int) -> None:
        for _ in range(times):
            x.add_(y)

    compute()  # the first ones warm up
    passes(1)
    alone_s = statistics.median(device.time_s(compute, at) for _ in range(SAMPLES))
    pass_s = statistics.median(device.time_s(lambda: passes(8), at) for _ in range(SAMPLES)) / 8
    # Over long before the products are, so that all of them count.
    times = max(1, min(1000, round(alone_s / 2 / max(pass_s, 1e-9))))
    shares = []
    for _ in range(SAMPLES):
        device.drain(at)
        begins = threading.Barrier(2)

        def beside(begins: threading.Barrier = begins) -> None:
            with device.side(at):
                begins.wait()
                passes(times)

        thread = threading.Thread(target=beside)
        thread.start()
        begins.wait()
        beside_s = device.time_s(compute, at)
        thread.join()
        shares.append((beside_s - alone_s) / max(times * pass_s, 1e-9))
    return min(1.0, max(0.0, statistics.median(shares)))
