"""The parts of `tightwire bench gpu`, each run as a process: `python -m tightwire.bench.gpu_parts NAME 0|1 SECONDS`."""

from __future__ import annotations

import json
import os
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
from tightwire.devices import DEVICES, device_named
from tightwire.errors import LabError

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
# A message by pinned memory may take so many times the longer of its copies and its way over the wire.
ASKED = 1.05
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
    from tightwire.transport import Single

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
    from tightwire.transport import Transport, run_threads
    from tightwire.transport.pinned import Pinned

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
    from tightwire.transport import Single, nccl

    communicator = nccl.connect_nccl(Single(), "bench", device)
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


def memory(setting: GpuSetting) -> GpuPart:
    """Compares what is allocated at most by an attached dense run and by a plain one."""
    from tightwire._attach import attach
    from tightwire.transport import Single

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
