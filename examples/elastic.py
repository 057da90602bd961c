"""Workers come and go while others train; run it as

    tightwire lab run --workers 3 --elastic -- python examples/elastic.py

and kill a worker, or send it SIGTERM. On several hosts: `python -m tightwire.transport.lighthouse` on one that stays,
and on every other `TORCHFT_LIGHTHOUSE=http://HOST:29510 python examples/elastic.py`, under anything that starts a
program anew, such as `torchrun --nproc-per-node 1 --max-restarts 100`.
"""

import torch
from torchdata.stateful_dataloader import StatefulDataLoader

import tightwire as tw

STEPS, BATCH = 60, 32

tw.init(elastic=True)
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1)).to(tw.device())
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
data = torch.randn(100_000, 8)
loader = StatefulDataLoader(
    range(0, len(data), BATCH), batch_size=1
)  # the same places in the data on every worker

with tw.attach(model, optimizer, plan="bsp", carry={"data": loader}) as run:
    places = iter(loader)
    while run.step < STEPS:
        # As many places per step as there are workers, and each takes the one of its rank: none is left out, none read
        # twice, whoever comes or goes.
        mine = [int(next(places)) for _ in range(run.transport.size)][run.transport.rank]
        x = data[mine : mine + BATCH]
        optimizer.zero_grad()
        loss = (model(x).squeeze(1) - x.sum(1)).square().mean()
        loss.backward()
        optimizer.step()
print(f"step {run.step}, {run.transport.size} workers, loss {loss.item():.4f}")
