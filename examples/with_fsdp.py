"""FSDP2 inside two groups of ranks, int8 between them: torchrun --nproc-per-node 4 examples/with_fsdp.py"""

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import tightwire as tw

transport = tw.init()
shards = max(1, transport.size // 2)
mesh = init_device_mesh("cpu", (transport.size // shards, shards), mesh_dim_names=("sites", "shards"))
torch.manual_seed(0)  # parameters equal in all groups
model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 1))
fully_shard(model, mesh=mesh["shards"])
optimizer = torch.optim.AdamW(model.parameters())
hook = tw.fsdp_hook(model, "bsp/allreduce/int8+ef")
torch.manual_seed(transport.rank)
for _ in range(8):
    x = torch.randn(16, 32)
    optimizer.zero_grad()
    (model(x) - x.sum(1, keepdim=True)).square().mean().backward()
    optimizer.step()
if transport.rank == 0:
    print(f"sent {hook.sent_bytes} bytes between {hook.replicas} groups in {hook.rounds} rounds")
tw.shutdown()
