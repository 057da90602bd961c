"""Stays on DistributedDataParallel, and compresses what it sends: torchrun --nproc-per-node 2 examples/ddp_hook.py."""

import torch
from torch import nn

import tightwire as tw


def main() -> None:
    rank = tw.init().rank
    torch.manual_seed(0)
    ddp = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)))
    hook = tw.ddp_hook("bsp/allreduce/topk:0.1+ef")
    hook.register(ddp)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.05)
    data = torch.Generator().manual_seed(1 + rank)
    for _ in range(50):
        x = torch.randn(16, 64, generator=data)
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(ddp(x), x.sum(1, keepdim=True))
        loss.backward()
        optimizer.step()
    checkpoint = {"model": ddp.module.state_dict(), "hook": hook.state_dict()}  # one per rank
    if rank == 0:
        print(f"loss {loss.item():.3f}; a checkpoint holds {', '.join(checkpoint)}")
    tw.shutdown()


if __name__ == "__main__":
    main()
