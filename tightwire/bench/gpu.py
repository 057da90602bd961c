"""What a GPU has to show, in less than eight minutes and without a network: right, fast, overlapped, small.

Every part stands for itself: one that fails is reported, and the others run on. Needed are torch with CUDA, numpy and
numba, pydantic and PyYAML (plan files), typer and rich (the command), and Triton, which torch with CUDA brings.

`emulate` walks the same code on the traced device, which has no speed: it shows that the script works, no more.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tightwire.bench.gpu_worker import DDP, GpuJob, batch, build, optimizer_of
from tightwire.bench.kernels import default_kernels
from tightwire.catalogue import catalogue, parse_member
from tightwire.compression import Codec
from tightwire.errors import LabError, TightwireError

LIMIT_S = 480.0
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
# Plans whose numbers are stock DDP's but for the order of sums.
EXACT = ("bsp", "bsp/allreduce:ring", "bsp/allreduce:direct", "bsp/allreduce/none/bytescheduler:1MiB,4MiB")
TIMED = ("topk:0.01", "int8", "int4", "qsgd:7")


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
    """

    kind: str = "cuda"
    sizes: tuple[int, ...] = (1, 1025, 1_000_003)
    timed_numel: int = 100_000_000
    width: int = 1024
    steps: int = 10
    message_bytes: int = 25_000_000
    plans: tuple[str, ...] = PLANS


EMULATED = GpuSetting(
    kind="traced",
    sizes=(1025,),
    timed_numel=100_000,
    width=24,
    steps=2,
    message_bytes=100_000,
    plans=("bsp", "bsp/allreduce:ring", "bsp/allreduce/topk:0.01+ef", "local:4"),
)


def run(
    *, emulate: bool = False, limit_s: float = LIMIT_S, on_part: Callable[[str], None] = lambda name: None
) -> dict[str, Any]:
    """Runs every part that there is time for.

    Args:
        emulate: on the traced device, small.
        limit_s: after which no part begins.
        on_part: is told which begins.

    Returns:
        What `results/gpu.json` holds.

    Raises:
        LabError: there is no CUDA device, and none is to be emulated.
    """
    setting = EMULATED if emulate else GpuSetting()
    if emulate:
        from tightwire.devices.traced import install

        install().restart()
    elif not torch.cuda.is_available():
        raise LabError(
            f"torch {torch.__version__} sees no CUDA device here: run this where there is one and torch was built for "
            "it, or give --emulate, which shows that the script works and nothing more."
        )
    began_s = time.perf_counter()
    parts: list[GpuPart] = []
    for name, part in PARTS.items():
        if time.perf_counter() - began_s > limit_s:
            parts.append(GpuPart(name=name, ok=False, said=f"not begun: {limit_s:.0f} s were over"))
            continue
        on_part(name)
        start_s = time.perf_counter()
        try:
            done = part(setting)
        except (TightwireError, RuntimeError, ValueError, AssertionError, OSError) as error:
            done = GpuPart(name=name, ok=False, said=f"{type(error).__name__}: {error}")
        parts.append(replace(done, name=name, seconds=time.perf_counter() - start_s))
    return {"machine": machine(setting), "emulated": emulate, "parts": [asdict(part) for part in parts]}


def machine(setting: GpuSetting) -> dict[str, Any]:
    """Returns what was measured on."""
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "host": platform.machine(),
    }
    if setting.kind == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "card": properties.name,
            "memory_bytes": properties.total_memory,
            "capability": list(torch.cuda.get_device_capability(0)),
            "cuda": torch.version.cuda,
            "devices": torch.cuda.device_count(),
        }
    if importlib.util.find_spec("triton") is not None:
        import triton

        found["triton"] = triton.__version__
    return found


def kernels_right(setting: GpuSetting) -> GpuPart:
    """Encodes and decodes on the device and on the CPU: messages, leftovers and sums must be the same to the bit."""
    wrong: list[str] = []
    count = 0
    for member in catalogue("compression").values():
        if not issubclass(member, Codec):
            continue
        codec = parse_member("compression", (member.example.partition("+")[0]) or member.name)
        assert isinstance(codec, Codec)
        for numel in setting.sizes:
            count += 1
            x = torch.randn(numel, generator=torch.Generator().manual_seed(numel))
            if not all(map(torch.equal, _coded(codec, x.clone()), _coded(codec, x.to(setting.kind)))):
                wrong.append(f"{codec} at {numel}")
    said = f"{count - len(wrong)} of {count} codecs and sizes give the CPU's bits"
    return GpuPart(name="", ok=not wrong, said=said + (f"; not {', '.join(wrong)}" if wrong else ""))


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
    from tightwire.bench.kernels import measure

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


def world_of_one(setting: GpuSetting) -> GpuPart:
    """Trains alone, attached and plain: the same parameters to the bit, at the same speed."""
    from tightwire._attach import attach
    from tightwire.devices import device_named
    from tightwire.transport import Single

    job = GpuJob(plans=(), kind=setting.kind, width=setting.width)
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
            where.wait(where.mark())
            start_s = time.perf_counter()
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            where.wait(where.mark())
            times[attached].append(time.perf_counter() - start_s)
        if run is not None:
            run.close()
        ended.append(torch.cat([p.detach().flatten() for p in model.parameters()]).cpu())
    same = torch.equal(*ended)
    ratio = statistics.median(times[1][2:]) / statistics.median(times[0][2:])
    first = times[1][0] / statistics.median(times[1][2:])
    said = f"{'the same bits' if same else 'OTHER NUMBERS'}; {ratio - 1:+.2%} over plain (asked 1 %)"
    return GpuPart(
        name="", ok=same and (ratio <= 1.01 or setting.kind != "cuda"), said=said,
        rows=[{"ratio": ratio, "first_step_over_typical": first}],
    )  # fmt: skip


def shared_device(setting: GpuSetting) -> GpuPart:
    """Trains 2 and 4 processes on one device over Gloo and pinned memory, under twelve plans and stock DDP."""
    rows: list[dict[str, Any]] = []
    wrong: list[str] = []
    for workers in (2,) if setting.kind != "cuda" else (2, 4):
        job = GpuJob(plans=(DDP, *setting.plans), kind=setting.kind, width=setting.width, steps=setting.steps)
        by_plan = _by_plan(_spawn(job, workers))
        stock = by_plan[DDP][0]
        for plan, of_ranks in by_plan.items():
            first = of_ranks[0]
            rows.append(
                {"workers": workers, **{k: first.get(k) for k in ("plan", "step_s", "losses", "sent_bytes")}}
            )
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
    """Trains with a trace: what is sent beside backward; and a message's copy and wire, apart and together."""
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
        _spawn(job, 2)
        events = json.loads(path.read_text())["traceEvents"]
    spans: dict[str, list[tuple[float, float]]] = {}
    for event in events:
        if event.get("ph") == "X":
            spans.setdefault(event["name"].split()[0], []).append((event["ts"], event["ts"] + event["dur"]))
    backward, buckets = spans.get("backward", []), spans.get("bucket", [])
    beside = [max(0.0, min(b, d) - max(a, c)) for a, b in buckets for c, d in backward]
    share = float(np.sum(beside) / max(1e-9, sum(b - a for a, b in buckets)))
    said = f"{share:.0%} of the time on the wire is beside backward, in {len(buckets)} spans"
    return GpuPart(
        name="",
        ok=bool(buckets and backward),
        said=said,
        rows=[{"share_beside_backward": share, **_pinned_times(setting)}],
    )


def _pinned_times(setting: GpuSetting) -> dict[str, float]:
    """Times a message between two threads: its copies alone, and with the transport."""
    from tightwire.devices import device_named
    from tightwire.transport import Transport, run_threads
    from tightwire.transport.pinned import Pinned

    device = torch.device(setting.kind, 0)
    where = device_named(device)
    x = torch.ones(setting.message_bytes // 4, device=device)
    room = where.pinned(4 * x.numel()).view(torch.float32)

    def seconds(work: Callable[[], object]) -> float:
        times = []
        for _ in range(5):
            where.wait(where.mark())
            start_s = time.perf_counter()
            work()
            where.wait(where.mark())
            times.append(time.perf_counter() - start_s)
        return min(times)

    def sum_over(transport: Transport) -> float:
        with where.side(device):
            mine = torch.ones(setting.message_bytes // 4, device=device)
            reach = Pinned(transport)
            return seconds(lambda: reach.all_reduce(mine).wait())

    host = torch.ones(setting.message_bytes // 4)
    wire_s = run_threads(2, lambda t: seconds(lambda: t.all_reduce(host.clone()).wait()), deadline_s=60.0)[0]
    return {
        "copy_s": seconds(lambda: where.copy(x, room)),
        "wire_s": wire_s,
        "together_s": run_threads(2, sum_over, deadline_s=60.0)[0],
    }


def nccl(setting: GpuSetting) -> GpuPart:
    """Runs NCCL: a world of one, and where several devices are, one process for each."""
    import torch.distributed as dist

    if setting.kind != "cuda" or not dist.is_nccl_available():
        return GpuPart(name="", ok=True, said="not run: no NCCL here")
    devices = torch.cuda.device_count()
    job = GpuJob(plans=("bsp", "bsp/allreduce:ring", "bsp/allreduce/topk:0.01+ef"), kind="cuda", over="nccl")
    rows = _spawn(job, devices, devices=devices)
    by_plan = _by_plan(rows)
    same = all(row["digest"] == of[0]["digest"] for of in by_plan.values() for row in of)
    return GpuPart(
        name="", ok=same, said=f"{devices} devices, {len(by_plan)} plans: replicas {'agree' if same else 'DIFFER'}",
        rows=[of[0] for of in by_plan.values()],
    )  # fmt: skip


def memory(setting: GpuSetting) -> GpuPart:
    """Compares what is allocated at most by an attached dense run and by a plain one."""
    from tightwire._attach import attach
    from tightwire.transport import Single

    if setting.kind != "cuda":
        return GpuPart(name="", ok=True, said="not run: an emulated device allocates host memory")
    job = GpuJob(plans=(), kind="cuda", width=setting.width)
    device = torch.device("cuda", 0)
    peaks: list[int] = []
    for attached in (False, True):
        torch.cuda.empty_cache()
        model = build(job, device)
        optimizer = optimizer_of(model)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run = attach(model, optimizer, "bsp/allreduce:ring", transport=Single()) if attached else None
        for step in range(3):
            optimizer.zero_grad()
            model(batch(job, 0, step, device)).square().mean().backward()
            optimizer.step()
        peaks.append(torch.cuda.max_memory_allocated(device) - before)
        if run is not None:
            run.close()
        del model, optimizer
    gradients = 4 * (setting.width**2 + setting.width) * job.depth
    added = peaks[1] - peaks[0]
    return GpuPart(
        name="", ok=added <= 1.05 * gradients, said=f"{added:,} bytes added; the buckets are {gradients:,}",
        rows=[{"added_bytes": added, "bucket_bytes": gradients}],
    )  # fmt: skip


PARTS: dict[str, Callable[[GpuSetting], GpuPart]] = {
    "kernels give the CPU's bits": kernels_right,
    "a world of one": world_of_one,
    "processes that share a device": shared_device,
    "overlap": overlap,
    "kernels against memory bandwidth": kernels_fast,
    "NCCL": nccl,
    "memory": memory,
}


def _spawn(job: GpuJob, workers: int, *, devices: int = 1) -> list[dict[str, Any]]:
    """Runs a job in processes on loopback; returns the rows of all.

    Raises:
        LabError: a process failed, with the end of what it said.
    """
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
    try:
        for process in processes:
            out, err = process.communicate(timeout=300)
            if process.returncode:
                raise LabError(f"a process ended with {process.returncode}: {err[-1500:]}")
            rows += [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    except subprocess.TimeoutExpired:
        raise LabError(f"{workers} processes did not end within 300 s under {', '.join(job.plans)}") from None
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return rows


def _by_plan(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: int(row["rank"])):
        found.setdefault(row["plan"], []).append(row)
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
            lines += ["", f"## {part['name']}", "", "```", *(json.dumps(row) for row in part["rows"]), "```"]
    return "\n".join(lines) + "\n"
