"""Processes that train on GPUs: several on one, or one on each over NCCL."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from tightwire.bench.gpu_setting import GpuPart, GpuSetting
from tightwire.bench.gpu_worker import DDP, GpuJob
from tightwire.devices import DEVICES
from tightwire.errors import LabError
from tightwire.transport import Single
from tightwire.transport.communicators import connect_nccl

# Plans whose numbers are stock DDP's but for the order of sums.
EXACT = ("bsp", "bsp/allreduce:ring", "bsp/allreduce:direct", "bsp/allreduce/none/bytescheduler:1MiB,4MiB")


def shared_device(setting: GpuSetting) -> GpuPart:
    """Trains 2 and 4 processes on one device over Gloo and pinned memory, under twelve plans and stock DDP."""
    rows: list[dict[str, Any]] = []
    wrong: list[str] = []
    for workers in (2,) if setting.kind != "cuda" else (2, 4):
        job = GpuJob(plans=(DDP, *setting.plans), kind=setting.kind, width=setting.width, steps=setting.steps)
        # Half of the time for 2 processes, and what is left for 4.
        rows_of, trouble = _spawn(job, workers, until_s=setting.ends_s if workers == 4 else _halfway(setting))
        wrong += [f"{workers} processes {trouble}"] * bool(trouble)
        by_plan = _by_plan(rows_of)
        stock = by_plan[DDP][0] if DDP in by_plan else {"losses": [float("nan")]}
        for plan, of_ranks in by_plan.items():
            first = of_ranks[0]
            told = ("plan", *(("step_s",) if setting.kind == "cuda" else ()), "losses", "sent_bytes")
            rows.append({"workers": workers, **{key: first.get(key) for key in told}})
            if "gossip" not in plan and any(row["digest"] != first["digest"] for row in of_ranks):
                wrong.append(f"{plan}: ranks differ")
            if plan in EXACT and abs(first["losses"][-1] - stock["losses"][-1]) > 1e-4 * abs(
                stock["losses"][-1]
            ):
                wrong.append(f"{plan}: loss {first['losses'][-1]}, DDP's {stock['losses'][-1]}")
            wrong += [f"{plan}: {race}" for row in of_ranks for race in row.get("races", [])[:1]]
    said = f"{len(rows)} rows; " + ("all agree" if not wrong else "; ".join(wrong[:5]))
    return GpuPart(name="", ok=not wrong, said=said, rows=rows)


def overlap(setting: GpuSetting) -> GpuPart:
    """Trains with a trace: what is sent beside backward."""
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        job = GpuJob(
            plans=("bsp/allreduce:ring",),
            kind=setting.kind,
            width=setting.width,
            steps=setting.steps,
            trace=str(path),
        )
        _, trouble = _spawn(job, 2, until_s=setting.ends_s)
        if trouble:
            raise LabError(f"2 processes {trouble}")
        events = json.loads(path.read_text())["traceEvents"]
    spans: dict[str, list[tuple[float, float]]] = {}
    for event in events:
        if event.get("ph") == "X":
            spans.setdefault(event["name"].split()[0], []).append((event["ts"], event["ts"] + event["dur"]))
    backward, buckets = spans.get("backward", []), spans.get("bucket", [])
    beside = [max(0.0, min(b, d) - max(a, c)) for a, b in buckets for c, d in backward]
    share = float(np.sum(beside) / max(1e-9, sum(b - a for a, b in buckets)))
    said = f"{share:.0%} of the time on the wire is beside backward, in {len(buckets)} spans"
    return GpuPart(name="", ok=bool(buckets and backward), said=said, rows=[{"share_beside_backward": share}])


def nccl(setting: GpuSetting) -> GpuPart:
    """Runs NCCL: alone, by the calls that every message takes; and where several devices are, one process for each."""
    import torch.distributed as dist

    if setting.kind != "cuda" or not dist.is_nccl_available():
        return GpuPart(name="", ok=True, said="not run: no NCCL here")
    wrong = nccl_alone(torch.device("cuda", 0))
    said = f"alone: {'; '.join(wrong) or 'messages and sums arrive'}"
    devices = DEVICES["cuda"].count()
    plans = ("bsp", "bsp/allreduce:native", "bsp/allreduce:ring", "bsp/allreduce/topk:0.01+ef")
    rows, trouble = _spawn(
        GpuJob(plans=plans, kind="cuda", over="nccl"), devices, devices=devices, until_s=setting.ends_s
    )
    by_plan = _by_plan(rows)
    same = all(row["digest"] == of[0]["digest"] for of in by_plan.values() for row in of)
    said += (
        f"; {devices} devices, {len(by_plan)} of {len(plans)} plans: replicas {'agree' if same else 'DIFFER'}"
    )
    return GpuPart(
        name="",
        ok=same and not trouble and not wrong,
        said=f"{said}; {trouble}" if trouble else said,
        rows=[of[0] for of in by_plan.values()],
    )


def nccl_alone(device: torch.device) -> list[str]:
    """Sends to itself and sums alone, as one device can; returns what did not arrive."""
    communicator = connect_nccl(Single(), "bench", device)
    wrong = []
    try:
        for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.uint8, torch.int16):
            sent = torch.arange(100, device=device).to(dtype)
            arrived = torch.zeros_like(sent)
            communicator.together([(sent, 0)], [(arrived, 0)]).wait()
            if not torch.equal(sent.cpu(), arrived.cpu()):
                wrong.append(f"a message of {dtype} did not arrive")
        alone = torch.ones(100, device=device)
        communicator.all_reduce(alone).wait()
        if not alone.cpu().eq(1).all():
            wrong.append("a sum of one is another number")
        if fault := communicator.fault():
            wrong.append(f"NCCL tells {fault}")
    finally:
        communicator.abort()
    return wrong


def _spawn(
    job: GpuJob, workers: int, *, until_s: float, devices: int = 1
) -> tuple[list[dict[str, Any]], str]:
    """Runs a job in processes on loopback; returns the rows of all so far, and what went wrong, if anything did."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {
        **os.environ, "WORLD_SIZE": str(workers), "LOCAL_WORLD_SIZE": str(workers), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])),
    }  # fmt: skip
    command = [sys.executable, "-m", "tightwire.bench.gpu_worker", json.dumps(asdict(job))]
    processes = []
    for rank in range(workers):
        mine = common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        if devices > 1:
            mine["CUDA_VISIBLE_DEVICES"] = str(rank)
        processes.append(
            subprocess.Popen(command, env=mine, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    rows: list[dict[str, Any]] = []
    trouble = ""
    for process in processes:
        try:
            left_s = max(1.0, min(until_s - time.perf_counter(), 600.0)) if not trouble else 1.0
            out, err = process.communicate(timeout=left_s)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            trouble = trouble or f"did not end in time: {end_of(err)}"
        if process.returncode and not trouble:
            trouble = f"failed, one with {process.returncode}: {end_of(err)}"
        rows += [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return rows, trouble


def end_of(errors: str) -> str:
    """Returns the last line that a process wrote of what went wrong: an exception's type and sentence."""
    lines = [line for line in errors.splitlines() if line.strip()]
    return lines[-1].strip()[-300:] if lines else "it said nothing"


def _halfway(setting: GpuSetting) -> float:
    now_s = time.perf_counter()
    return now_s + (setting.ends_s - now_s) / 2


def _by_plan(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: int(row["rank"])):
        found.setdefault(row["plan"], []).append(row)
    return found
