"""Trains a byte-level transformer on the source of Python's own library, kept in step by the plan that suits the wire.

python examples/train.py                                                    alone
torchrun --nproc-per-node 2 examples/train.py                               two workers on this machine
tightwire lab run --workers 4 --rate 200mbit -- python examples/train.py    four on an emulated slow network
"""

import argparse

import torch

import tightwire as tw
from tightwire.workloads.text import draw, standard_library
from tightwire.workloads.transformer import ByteTransformer


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plan", default="auto")
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()

    rank = tw.init().rank
    text = standard_library().train
    share = torch.Generator().manual_seed(rank)  # every worker draws its own passages
    model = ByteTransformer().to(tw.device())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with tw.attach(model, optimizer, plan=options.plan) as run:
        for _ in range(options.steps):
            optimizer.zero_grad()
            model(draw(text, sequences=4, length=model.length, generator=share)).backward()
            optimizer.step()
    if rank == 0:
        print(run.report())
    tw.shutdown()


if __name__ == "__main__":
    main()
