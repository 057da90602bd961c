"""Saves, and resumes, also on another number of workers: torchrun --nproc-per-node 2 examples/checkpoint.py run.pt."""

import pathlib
import sys

import torch
from torch import nn

import tightwire as tw


def main(path: pathlib.Path) -> None:
    transport = tw.init()
    mine = path.with_suffix(f".{transport.rank}.pt")  # every rank keeps its own part
    model = nn.Linear(8, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    with tw.attach(model, optimizer, plan="bsp/allreduce/topk:0.25+ef") as run:
        if mine.exists():
            saved = torch.load(mine, weights_only=True)
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            run.load_state_dict(saved["run"])
        for _ in range(10):
            optimizer.zero_grad()
            model(torch.randn(4, 8)).square().mean().backward()
            optimizer.step()
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "run": run.state_dict()}
        torch.save(state, mine)
        if transport.rank == 0:
            print(f"saved after step {run.step}")
    tw.shutdown()


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
