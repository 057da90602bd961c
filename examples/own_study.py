"""A study of one's own: four workers as threads of this process learn alike under three plans; bytes are counted."""

from functools import partial

import torch
from torch import nn

import tightwire as tw
from tightwire.transport import Transport, run_threads

PLANS = ("bsp", "bsp/allreduce/topk:0.05+ef", "local:8/allreduce/int8+ef")


def train(plan: str, transport: Transport) -> tuple[float, int]:
    """Trains one worker; returns the final loss on fresh data, and the bytes that it sent."""
    model = nn.Linear(256, 1)  # attach makes all workers' parameters those of worker 0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    data = torch.Generator().manual_seed(1 + transport.rank)
    truth = torch.linspace(-1, 1, 256)
    with tw.attach(model, optimizer, plan, transport=transport) as run:
        for _ in range(200):
            x = torch.randn(8, 256, generator=data)
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x)[:, 0], x @ truth).backward()
            optimizer.step()
    x = torch.randn(512, 256, generator=data)
    with torch.no_grad():
        return float(nn.functional.mse_loss(model(x)[:, 0], x @ truth)), run.report().sent_bytes


if __name__ == "__main__":
    for plan in PLANS:
        results = run_threads(4, partial(train, plan))
        print(f"{plan:28} loss {results[0][0]:8.5f}  {results[0][1]:>9,} bytes")
