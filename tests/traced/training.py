"""A small job on the traced device, whose ranks are threads with pinned memory between them, and on the CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tightwire._attach import attach
from tightwire.devices.traced import KIND, TracedDevice, install
from tightwire.transport import Transport, Work, run_threads
from tightwire.transport.wrapper import Wrapper

TRACED: TracedDevice = install()
STEPS = 2


class Watched(Wrapper):
    """Tells the traced device what the host reads and writes of pinned memory, as Gloo's threads would."""

    def isend(self, tensor: Tensor, dst: int, tag: int) -> Work:
        TRACED.host_reads(tensor)
        return self.inner.isend(tensor, dst, tag)

    def irecv(self, tensor: Tensor, src: int, tag: int) -> Work:
        return WatchedWork(self.inner.irecv(tensor, src, tag), tensor)

    def all_reduce(self, tensor: Tensor) -> Work:
        TRACED.host_reads(tensor)
        return WatchedWork(self.inner.all_reduce(tensor), tensor)

    def wrap(self, child: Transport, ranks: Sequence[int]) -> Transport:
        return Watched(child)


class WatchedWork:
    def __init__(self, work: Work, tensor: Tensor) -> None:
        self.work, self.tensor = work, tensor

    def wait(self) -> None:
        self.work.wait()
        TRACED.host_writes(self.tensor)

    def attend(self) -> bool:
        arrived = self.work.attend()
        if arrived:
            TRACED.host_writes(self.tensor)
        return arrived


class Net(nn.Module):
    """Odd sizes and a scalar; nothing that torch computes otherwise on other devices."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 9), nn.Linear(9, 7), nn.Linear(7, 3)
        self.scale = nn.Parameter(torch.tensor(1.5))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.tanh(self.b(torch.tanh(self.a(x))))) * self.scale  # type: ignore[no-any-return]


def fused(parameters: Any) -> Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, fused=True)


def sgd(parameters: Any) -> Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, foreach=False)


def train(
    plan: str,
    kind: str,
    *,
    workers: int = 2,
    steps: int = STEPS,
    optimizer: Callable[[Any], Optimizer] = sgd,
    reach: Callable[[Transport], Transport] = Watched,
    dtype: torch.dtype = torch.float32,
    scales: bool = False,
    poison: int = -1,
    around: Callable[[str], contextlib.AbstractContextManager[None]] = lambda what: contextlib.nullcontext(),
    make: Callable[[], nn.Module] = Net,
    call: Callable[[nn.Module], Callable[[Tensor], Tensor]] = lambda model: model,
) -> list[list[Tensor]]:
    """Returns each rank's parameters after training under `plan` on a kind of device, on the host.

    Args:
        plan: of all ranks.
        kind: of device.
        workers: how many.
        steps: of each.
        optimizer: makes it from parameters.
        reach: wraps the transport between the device's ranks.
        dtype: of the model.
        scales: whether a GradScaler scales the loss.
        poison: the step in which the last rank's loss is infinite; -1 for none.
        around: what the ranks' threads do each `backward` and each `step` in.
        make: the model, which takes (4, 6).
        call: returns what is called in place of an attached model.
    """

    def work(transport: Transport) -> list[Tensor]:
        device = torch.device(kind)
        with contextlib.ExitStack() as stack:
            # Hooks run in the rank's own thread, not in one thread for all ranks.
            stack.enter_context(torch.autograd.set_multithreading_enabled(False))
            if kind == KIND:
                stack.enter_context(TRACED.side(device))  # each rank's own default stream
                transport = reach(transport)
            model = make().to(device, dtype)
            steps_with = optimizer(model.parameters())
            scaler = torch.amp.GradScaler(kind, init_scale=1024.0, enabled=scales)
            with attach(
                model, steps_with, plan, transport=transport, scaler=scaler if scales else None
            ) as run:
                forward = call(model)
                for step in range(0 if run.is_server else steps):
                    drawn = torch.Generator().manual_seed(100 * transport.rank + step)
                    x = torch.randn(4, 6, generator=drawn).to(device, dtype)
                    steps_with.zero_grad()
                    loss = (forward(x) - transport.rank).square().mean()
                    if step == poison and transport.rank == workers - 1:
                        loss = loss * torch.inf
                    with around("backward"):
                        scaler.scale(loss).backward()
                    with around("step"):
                        scaler.step(steps_with)
                    scaler.update()
            return [p.detach().cpu() for p in model.parameters()]

    return run_threads(workers, work, deadline_s=60)


def same(a: list[list[Tensor]], b: list[list[Tensor]]) -> bool:
    return all(torch.equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True))
