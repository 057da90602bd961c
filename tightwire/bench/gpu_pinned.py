"""A message's way through pinned memory on a GPU: copies and wire together, over the longer of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict

import torch

from tightwire.bench.gpu_setting import GpuPart, GpuSetting
from tightwire.devices import device_named
from tightwire.transport import Transport, run_threads
from tightwire.transport.pinned import Pinned

# A message by pinned memory may take so many times the longer of its copies and its way over the wire.
ASKED = 1.05


def crossing(setting: GpuSetting) -> GpuPart:
    """Sums a message by pinned memory: copies and wire together, over the longer of them; simulated without a GPU."""
    if setting.kind == "cuda":
        measured = _pinned_times(setting)
        longer_s = max(measured["wire_s"], measured["copies_s"])
        ratio = measured["together_s"] / longer_s
        return GpuPart(
            name="",
            ok=ratio <= ASKED,
            said=f"{setting.message_bytes / 1e6:g} MB take {ratio:.2f} × the longer of wire and PCIe (asked {ASKED})",
            rows=[{**measured, "ratio": ratio}],
        )
    from tightwire.bench.gpu_crossing import crossings
    from tightwire.devices.traced import install

    rows = crossings(install(), setting.message_bytes)
    native, ours = (
        max(row.ratio for row in rows if (row.program == "native") is is_it) for is_it in (True, False)
    )
    said = (
        f"simulated: {setting.message_bytes / 1e6:g} MB take at most {native:.3f} × the longer of wire and PCIe (asked "
        f"{ASKED}); a ring of ours at most {ours:.2f}, where both are as long"
    )
    return GpuPart(name="", ok=native <= ASKED, said=said, rows=[asdict(row) for row in rows])


def _pinned_times(setting: GpuSetting) -> dict[str, float]:
    """Times a sum among two threads: its copies alone, the sum alone, and both by the transport."""
    device = torch.device(setting.kind, 0)
    where = device_named(device)
    x = torch.ones(setting.message_bytes // 4, device=device)
    room = where.pinned(4 * x.numel()).view(torch.float32)

    def seconds(work: Callable[[], object]) -> float:
        times = []
        for _ in range(5):
            where.wait(where.mark(device))
            start_s = time.perf_counter()
            work()
            where.wait(where.mark(device))
            times.append(time.perf_counter() - start_s)
        return min(times)

    def sum_over(transport: Transport) -> float:
        with where.side(device):
            mine = torch.ones(setting.message_bytes // 4, device=device)
            reach = Pinned(transport)
            return seconds(lambda: reach.all_reduce(mine).wait())

    def sum_alone(transport: Transport) -> float:
        mine = torch.ones(setting.message_bytes // 4)
        return seconds(lambda: transport.all_reduce(mine).wait())

    return {
        "copies_s": seconds(lambda: where.copy(x, room)) + seconds(lambda: where.copy(room, x)),
        "wire_s": run_threads(2, sum_alone, deadline_s=60.0)[0],
        "together_s": run_threads(2, sum_over, deadline_s=60.0)[0],
    }
