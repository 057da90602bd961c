"""Accelerate, with a compressed plan: torchrun --nproc-per-node 2 examples/with_accelerate.py"""

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tightwire.integrations.accelerate import prepare

accelerator = Accelerator(cpu=True)
model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 1))
optimizer = torch.optim.AdamW(model.parameters())
x = torch.randn(256, 32)
loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=16)

model, optimizer, loader, run = prepare(accelerator, model, optimizer, loader, plan="bsp/allreduce/int8+ef")
with run:
    for x, y in loader:
        optimizer.zero_grad()
        accelerator.backward((model(x) - y).square().mean())
        optimizer.step()
if accelerator.is_main_process:
    print(run.report())
