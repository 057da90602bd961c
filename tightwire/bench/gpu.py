"""What a GPU has to show, in less than eight minutes and without a network: right, fast, overlapped, small.

Every part is a process of its own with a limit of its own: one that fails, hangs or spoils the device is reported, and
the others run on. Needed are torch with CUDA, numpy and numba, pydantic and PyYAML (plan files), typer and rich (the
command), and Triton, which torch with CUDA brings.

`emulate` walks the same code on the traced device, which has no speed: it shows that the script works, no more.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from tightwire.bench.gpu_parts import LIMITS_S, PARTS
from tightwire.bench.gpu_processes import end_of
from tightwire.bench.gpu_setting import EMULATED, GpuPart, GpuSetting
from tightwire.devices import DEVICES
from tightwire.errors import LabError

LIMIT_S = 480.0
# Of rows: what a page does not show, for it is for comparing alone.
UNTOLD = ("digest", "rank", "job", "races")


def run(
    *,
    emulate: bool = False,
    limit_s: float = LIMIT_S,
    on_part: Callable[[str], None] = lambda name: None,
    on_done: Callable[[dict[str, Any]], None] = lambda found: None,
) -> dict[str, Any]:
    """Runs every part that there is time for.

    Args:
        emulate: on the traced device, small.
        limit_s: of all parts together; what a part leaves of its own limit, later ones may use.
        on_part: is told which begins.
        on_done: is given what was found so far after each part, to be written at once: a machine may be taken away.

    Returns:
        What `results/gpu.json` holds.

    Raises:
        LabError: there is no CUDA device, and none is to be emulated.
    """
    setting = EMULATED if emulate else GpuSetting()
    if not emulate and not DEVICES["cuda"].count():
        raise LabError(
            f"torch {torch.__version__} sees no CUDA device here: run this where there is one and torch was built for "
            "it, or give --emulate, which shows that the script works and nothing more."
        )
    found: dict[str, Any] = {"machine": machine(setting), "emulated": emulate, "parts": []}
    began_s, spare_s = time.perf_counter(), limit_s - sum(LIMITS_S.values())
    for name in PARTS:
        on_part(name)
        start_s = time.perf_counter()
        allowed_s = min(LIMITS_S[name] + spare_s, began_s + limit_s - start_s)
        part = _run_apart(name, emulate, allowed_s)
        took_s = time.perf_counter() - start_s
        spare_s += LIMITS_S[name] - took_s
        found["parts"].append({**asdict(part), "name": name, "seconds": took_s})
        on_done(found)
    return found


def _run_apart(name: str, emulate: bool, limit_s: float) -> GpuPart:
    """Runs a part in a process of its own, which is ended with all that it started when its time is over."""
    if limit_s < 1:
        return GpuPart(name=name, ok=False, said="not begun: all the time was used by the parts before")
    command = [sys.executable, "-m", "tightwire.bench.gpu_parts", name, str(int(emulate)), f"{limit_s:.0f}"]
    here = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]))
    process = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": here},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    late = False
    try:
        out, err = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        late = True
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
    rows = [json.loads(line) for line in out.splitlines() if line.startswith('{"name"')]
    if rows:
        return GpuPart(**rows[-1])
    why = f"did not end within {limit_s:.0f} s" if late else f"its process ended with {process.returncode}"
    return GpuPart(name=name, ok=False, said=f"{why}: {end_of(err)}")


def machine(setting: GpuSetting) -> dict[str, Any]:
    """Returns what was measured on."""
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "host": platform.machine(),
    }
    if setting.kind in DEVICES:
        found |= DEVICES[setting.kind].facts(torch.device(setting.kind, 0))
    if importlib.util.find_spec("triton") is not None:
        import triton

        found["triton"] = triton.__version__
    return found


def page(found: dict[str, Any]) -> str:
    """Returns what was found as Markdown."""
    machine_of = ", ".join(f"{key} {value}" for key, value in found["machine"].items())
    title = "an emulated device: no speed is measured" if found["emulated"] else found["machine"]["card"]
    lines = [f"# On {title}", "", machine_of, "", "| part | holds | found | seconds |", "|---|---|---|---|"]
    for part in found["parts"]:
        said = part["said"].replace("|", "/").replace("\n", " ")
        lines.append(f"| {part['name']} | {'yes' if part['ok'] else 'NO'} | {said} | {part['seconds']:.0f} |")
    for part in found["parts"]:
        if part["rows"]:
            lines += ["", f"## {part['name']}", "", *_table(part["rows"])]
    return "\n".join(lines) + "\n"


def _table(rows: list[dict[str, Any]]) -> list[str]:
    """Returns rows as lines of a Markdown table, numbers to the right; a column for whatever any of them tells."""
    keys = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in UNTOLD]
    numbers = {key: all(isinstance(row.get(key), int | float | None) for row in rows) for key in keys}
    heads = [" ".join(key.removesuffix("_s").removesuffix("_bytes").split("_")) for key in keys]
    units = [" (ms)" if key.endswith("_s") else " (MB)" if key.endswith("_bytes") else "" for key in keys]
    return [
        "| " + " | ".join(map(str.__add__, heads, units)) + " |",
        "|" + "|".join("---:" if numbers[key] else "---" for key in keys) + "|",
        *("| " + " | ".join(_cell(key, row.get(key)) for key in keys) + " |" for row in rows),
    ]


def _cell(key: str, value: object) -> str:
    if isinstance(value, list | tuple):
        return " → ".join(_cell("", each) for each in value)
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, int | float) and key.endswith(("_s", "seconds")):
        return f"{1e3 * value:,.3f}"
    if isinstance(value, int | float) and key.endswith("_bytes"):
        return f"{value / 1e6:,.3f}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "/")
