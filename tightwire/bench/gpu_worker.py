"""One process of `tightwire bench gpu`: trains on a device that several may share, under a plan or stock DDP."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

DDP = "ddp"


@dataclass(frozen=True, kw_only=True)
class GpuJob:
    """What is trained.

    Attributes:
        plans: one after another, in fresh models; `ddp` is stock DDP over Gloo.
        kind: of device: `cuda`, or `traced` where none is.
        width: of each layer.
        rows: of a batch.
        depth: layers.
        steps: counted, after two that are not.
        over: how messages leave the device.
        trace: where the first rank writes what it did under the last plan; empty for nowhere.
    """

    plans: tuple[str, ...]
    kind: str
    width: int = 1024
    rows: int = 32
    depth: int = 6
    steps: int = 10
    over: str = "pinned"
    trace: str = ""


class Stack(nn.Module):
    """Linear layers and what torch computes alike everywhere."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        """Returns as many numbers as came in."""
        for layer in self.layers:
            x = torch.relu(layer(x)) + x
        return x


def build(job: GpuJob, device: torch.device) -> nn.Module:
    """Returns the model as every rank begins."""
    torch.manual_seed(0)
    return Stack(job.width, job.depth).to(device)


def batch(job: GpuJob, rank: int, step: int, device: torch.device) -> Tensor:
    """Returns what a rank trains on in a step."""
    generator = torch.Generator().manual_seed(1000 * rank + step)
    return torch.randn(job.rows, job.width, generator=generator).to(device)


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """Returns the optimizer of all rows."""
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


def train(job: GpuJob, plan: str, transport: Any, device: torch.device) -> dict[str, Any]:
    """Returns what one plan did on this rank."""
    import torch.distributed as dist

    from tightwire._attach import attach
    from tightwire.devices import device_named

    rank = transport.rank
    model = build(job, device)
    optimizer = optimizer_of(model)
    run = None
    trained: nn.Module = model
    if plan == DDP:
        # The default group sends what is on CUDA by NCCL, which refuses ranks that share a device.
        trained = nn.parallel.DistributedDataParallel(model, process_group=dist.new_group(backend="gloo"))
    else:
        run = attach(model, optimizer, plan, transport=transport, over=job.over)  # type: ignore[arg-type]
    where = device_named(device)
    losses: list[float] = []
    began_s = 0.0
    for step in range(job.steps + 2):
        if step == 2:
            where.wait(where.mark(device))
            transport.barrier()
            began_s = time.perf_counter()
        optimizer.zero_grad()
        loss = trained(batch(job, rank, step, device)).square().mean()
        loss.backward()
        optimizer.step()
        if step in (0, job.steps + 1):
            losses.append(loss.item())
    where.wait(where.mark(device))
    seconds = (time.perf_counter() - began_s) / job.steps
    row: dict[str, Any] = {"plan": plan, "step_s": seconds, "losses": losses}
    if run is not None:
        if job.trace and plan == job.plans[-1] and rank == 0:
            run.trace(job.trace)
        row |= {"sent_bytes": run.report().sent_bytes, "exposed_s": run.report().exposed_s}
        run.finish()  # the last means may still be on their way
        run.close()
    flat = torch.cat([p.detach().flatten() for p in model.parameters()]).cpu()
    row["digest"] = [flat.double().sum().item(), flat.double().square().sum().item()]
    row["memory_bytes"] = where.memory([device]).peak_bytes
    row["pinned_bytes"] = where.memory([device]).pinned_bytes
    return row


def main() -> None:
    """Joins, trains under each plan, and prints a row for each."""
    import tightwire as tw

    job = GpuJob(**json.loads(sys.argv[1]))
    torch.set_num_threads(1)
    if job.kind == "traced":
        from tightwire.devices.traced import install

        traced = install()
        traced.restart()
    device = torch.device(job.kind, 0)
    transport = tw.init()
    for plan in job.plans:
        # Stock DDP knows no traced device; its row is then the CPU's, which numbers are compared with.
        here = torch.device("cpu") if plan == DDP and job.kind == "traced" else device
        row = train(job, plan, transport, here)
        if job.kind == "traced":
            row["races"] = [str(race) for race in traced.races][:3]
        print(json.dumps(row | {"rank": transport.rank, "job": asdict(job)["over"]}), flush=True)
    tw.shutdown()


if __name__ == "__main__":
    main()
