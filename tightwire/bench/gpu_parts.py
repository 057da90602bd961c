"""The parts of `tightwire bench gpu`, each run as a process: `python -m tightwire.bench.gpu_parts NAME 0|1 SECONDS`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace

from tightwire.bench.gpu_alone import memory, world_of_one
from tightwire.bench.gpu_kernels import kernels_fast, kernels_right
from tightwire.bench.gpu_pinned import crossing
from tightwire.bench.gpu_processes import nccl, overlap, shared_device
from tightwire.bench.gpu_setting import EMULATED, GpuPart, GpuSetting

# Together less than eight minutes; what one leaves, later ones may use. Compiling is most of the first.
LIMITS_S = {
    "kernels give the CPU's bits": 140.0,
    "a world of one": 40.0,
    "processes that share a device": 110.0,
    "overlap": 30.0,
    "a message by pinned memory": 20.0,
    "kernels against memory bandwidth": 70.0,
    "NCCL": 40.0,
    "memory": 30.0,
}
PARTS: dict[str, Callable[[GpuSetting], GpuPart]] = {
    "kernels give the CPU's bits": kernels_right,
    "a world of one": world_of_one,
    "processes that share a device": shared_device,
    "overlap": overlap,
    "a message by pinned memory": crossing,
    "kernels against memory bandwidth": kernels_fast,
    "NCCL": nccl,
    "memory": memory,
}


def main() -> None:
    """Runs one part, and prints what it found."""
    name, emulate, limit_s = sys.argv[1], sys.argv[2] == "1", float(sys.argv[3])
    if emulate:
        from tightwire.devices.traced import install

        install().restart()
    setting = replace(EMULATED if emulate else GpuSetting(), ends_s=time.perf_counter() + 0.9 * limit_s)
    try:
        part = PARTS[name](setting)
    except Exception as error:  # whatever it is, it is what this part found
        part = GpuPart(name=name, ok=False, said=f"{type(error).__name__}: {error}")
    print(json.dumps(asdict(replace(part, name=name))), flush=True)


if __name__ == "__main__":
    main()
