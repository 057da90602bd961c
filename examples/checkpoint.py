"""Saves one file for all, and resumes from it on any number of workers: run twice, with 2 and then with 3 of them,

torchrun --nproc-per-node 2 examples/checkpoint.py run.pt
"""

import pathlib
import sys

import torch
from torch import nn

import tightwire as tw


def main(path: pathlib.Path) -> None:
    transport = tw.init()
    if len(seen := set(transport.exchange(str(path.exists()).encode()))) > 1:  # by each rank
        sys.exit(f"{path} is there for some ranks only: copy it to every machine, and start again.")
    model = nn.Linear(8, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    with tw.attach(model, optimizer, plan="bsp/allreduce/topk:0.25+ef") as run:
        if seen == {b"True"}:
            saved = torch.load(path, weights_only=True)
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            run.load_state_dict(saved["run"])  # after the other two, on every rank
        for _ in range(10):
            optimizer.zero_grad()
            model(torch.randn(4, 8)).square().mean().backward()
            optimizer.step()
        everybody = run.state_dict(gather=True)  # on every rank; empty on all but rank 0
        if everybody:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "run": everybody}
            torch.save(state, path)
            print(f"{transport.size} workers saved after step {run.step}")
    tw.shutdown()


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
