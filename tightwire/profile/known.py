"""What codecs cost on this machine, timed once and kept on disk: the next run on it need not wait for that."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import pathlib
import platform
import time
from collections.abc import Sequence

import torch

from tightwire import files
from tightwire.catalogue import parse_compression
from tightwire.devices import Device, device_named
from tightwire.errors import FileError
from tightwire.profile.codecs import measure_codecs, measure_pass
from tightwire.profile.cost import CodecCost

HOST = torch.device("cpu")
# Machines change under the same name, as virtual ones do.
FRESH_S = 7 * 24 * 3600.0

log = logging.getLogger("tightwire")


def known_costs(
    compressions: Sequence[str],
    *,
    numel: int,
    at: torch.device = HOST,
    path: pathlib.Path | None = None,
) -> tuple[tuple[CodecCost, ...], float]:
    """Returns what the senders of some compressions cost, and one pass over memory, in seconds per element.

    On the host these are times of the processor, whatever else it does: where workers share it, they are as many times
    longer as compute is. What the file does not hold is timed, and kept. A file of another machine, version or number
    of threads, or one that cannot be read, is replaced.

    Args:
        compressions: compression answers.
        numel: of the bucket that they are timed on.
        at: the device that they are timed on.
        path: of the file; None: in the user's cache.
    """
    device = device_named(at)
    on = "" if device.is_host else f"-{at.type}"
    path = path or files.cache_folder() / f"codecs-{numel}{on}.json"
    facts = _facts(device, at)
    # A device is ours alone, and the host waits for it.
    clock = time.thread_time if device.is_host else time.perf_counter
    costs, pass_s = _read(path, facts)
    missing = [text for text in compressions if str(parse_compression(text)[0]) not in costs]
    if missing or pass_s is None:
        found = measure_codecs(missing, numel=numel, device=at, clock=clock)
        costs |= {cost.compression: cost for cost in found}
        pass_s = measure_pass(numel=numel, device=at, clock=clock) if pass_s is None else pass_s
        _write(path, facts, costs, pass_s)
    return tuple(costs.values()), pass_s


def _facts(device: Device, at: torch.device) -> dict[str, object]:
    return {
        "device": device.kind if device.is_host else device.facts(at),
        "version": files.own_version(),
        "torch": torch.__version__,
        "machine": f"{platform.node()} {platform.machine()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "times": "of the processor" if device.is_host else "on the wall",
    }


def _read(path: pathlib.Path, facts: dict[str, object]) -> tuple[dict[str, CodecCost], float | None]:
    try:
        if time.time() - path.stat().st_mtime > FRESH_S:
            return {}, None
        kept = files.read_json(path)
        if kept["made_on"] != facts:
            return {}, None
        costs = [
            CodecCost(**row) for row in kept["codecs"]
        ]  # `files.check` would load pydantic, as ranks wait
        return {cost.compression: cost for cost in costs}, float(kept["pass_s_per_element"])
    except (OSError, FileError, KeyError, TypeError, ValueError):
        return {}, None


def _write(path: pathlib.Path, facts: dict[str, object], costs: dict[str, CodecCost], pass_s: float) -> None:
    rows = [dataclasses.asdict(cost) for cost in costs.values()]
    content = {"made_on": facts, "pass_s_per_element": pass_s, "codecs": rows}
    try:
        files.make_directory(path.parent)
        files.write_text(path, json.dumps(content, indent=1) + "\n")
    except FileError as error:
        log.debug("what codecs cost here is not kept: %s", error)
