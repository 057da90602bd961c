"""Trains in mixed precision on GPUs where there are some, else on the CPU: torchrun --nproc-per-node 2 examples/gpu.py.

Run `tightwire warm` once per machine before, so that no run waits for kernels to be compiled.
"""

import torch

import tightwire as tw
from tightwire.workloads.text import draw, standard_library
from tightwire.workloads.transformer import ByteTransformer


def main() -> None:
    rank = tw.init().rank
    device = tw.device()  # the GPU of this rank, or the CPU
    text = standard_library().train
    share = torch.Generator().manual_seed(rank)
    size = (
        {"width": 256, "layers": 6} if device.type == "cuda" else {"width": 64, "layers": 2}
    )  # to be tried out
    model = ByteTransformer(**size).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=device.type == "cuda")
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")  # for float16 alone
    with tw.attach(model, optimizer, plan="bsp/allreduce/int8+ef", scaler=scaler) as run:
        for _ in range(5):
            optimizer.zero_grad()
            batch = draw(text, sequences=4, length=model.length, generator=share).to(device)
            with torch.autocast(device.type, torch.float16 if device.type == "cuda" else torch.bfloat16):
                loss = model(batch)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)  # what is clipped is the mean over ranks
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
    if rank == 0:
        print(run.report())
    tw.shutdown()


if __name__ == "__main__":
    main()
