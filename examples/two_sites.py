"""DiLoCo between two sites, FSDP2 inside each: torchrun --nproc-per-node 4 examples/two_sites.py"""

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import tightwire as tw

transport = tw.init()
sites = min(2, transport.size)
mesh = init_device_mesh("cpu", (sites, transport.size // sites), mesh_dim_names=("sites", "shards"))
model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 1))
for layer in model[::2]:
    fully_shard(layer, mesh=mesh["shards"])
fully_shard(model, mesh=mesh["shards"])
optimizer = torch.optim.AdamW(model.parameters())
torch.manual_seed(transport.rank)
with tw.fsdp_hook(model, "diloco:8/allreduce/int8+ef", optimizer=optimizer) as hook:
    for _ in range(32):
        x = torch.randn(16, 32)
        optimizer.zero_grad()
        (model(x) - x.sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()
if transport.rank == 0:
    print(f"{hook.replicas} sites agreed {hook.rounds} times, each shard with {hook.sent_bytes} bytes")
tw.shutdown()
