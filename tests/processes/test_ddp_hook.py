"""The hook for stock DDP: the same training as stock DDP and as attach, and state that outlives new buckets."""

from __future__ import annotations

from tests.workers import run_processes

SETUP = """
import copy, io, warnings
import tightwire as tw
from torch import nn

tw.init(deadline_s=20)

def make(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 5))

def loss_of(model, step):
    g = torch.Generator().manual_seed(100 * step + rank)
    x, y = torch.randn(8, 20, generator=g), torch.randn(8, 5, generator=g)
    return (model(x) - y).square().mean()

def train(model, steps, optimizer):
    for step in steps:
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()

def hooked(model, plan, state=None, **options):
    ddp = nn.parallel.DistributedDataParallel(model, **options)
    hook = tw.ddp_hook(plan)
    if state is not None:
        hook.load_state_dict(state)
    hook.register(ddp)
    return ddp, hook

def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)

def apart(a, b):
    return max(float((x - y).detach().abs().max()) for x, y in zip(a.parameters(), b.parameters()))

def saved(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)
"""

COMPARE = """
found = {}
stock = make()
train(nn.parallel.DistributedDataParallel(stock), range(6), sgd(stock))
for plan in ("bsp", "bsp/allreduce:ring", "bsp/allreduce/topk:1.0+ef", "bsp/allreduce/none+momentum:0"):
    for options in ({}, {"bucket_cap_mb": 0.001, "gradient_as_bucket_view": True}):
        model = make()
        ddp, hook = hooked(model, plan, **options)
        train(ddp, range(6), sgd(model))
        assert hook.rounds == 6
        assert hook.sent_bytes == hook.planned_bytes > 0, plan
        found[f"{plan} {options}"] = apart(model, stock)
for plan in ("topk:0.2+ef", "topk:0.2+ef+momentum:0.5+dense-every:3", "dgc:ratio=0.2,warmup=4", "topk:0.2+ef21"):
    ours, theirs = make(), make()
    with tw.attach(ours, sgd_of_ours := sgd(ours), f"bsp/allreduce/{plan}/sequential") as run:
        train(ours, range(6), sgd_of_ours)
    ddp, hook = hooked(theirs, f"bsp/allreduce/{plan}")
    train(ddp, range(6), sgd(theirs))
    assert hook.sent_bytes == hook.planned_bytes > 0, plan
    assert apart(ours, make()) > 1e-3
    found[plan] = apart(ours, theirs)
tw.shutdown()
answer(found)
"""

KEEP = """
# Small buckets, which DDP cuts anew after the first step: what has arrived and what is left is what was put in.
model = make()
ddp, hook = hooked(model, "bsp/allreduce/topk:0.1+ef", bucket_cap_mb=0.001)
put_in = [torch.zeros_like(p) for p in model.parameters()]
arrived = [torch.zeros_like(p) for p in model.parameters()]
cuts = []
for step in range(5):
    for total, gradient in zip(put_in, torch.autograd.grad(loss_of(model, step), list(model.parameters()))):
        total += gradient
    ddp.zero_grad()
    loss_of(ddp, step).backward()
    cuts.append(sorted(hook._averagers))
    for total, p in zip(arrived, model.parameters()):
        total += p.grad
    torch.optim.SGD(model.parameters(), lr=0.0).step()
memory = hook.state_dict()["memory"]
assert set(memory) == {name for name, _ in model.named_parameters()}
left = []
for (name, _), a, i in zip(model.named_parameters(), arrived, put_in):
    difference = i - memory[name]["ef"]
    dist.all_reduce(difference)
    left.append(float((difference / size - a).abs().max()))

# A checkpoint in the middle, into other hands: the same bits as going on. One bucket, whichever way it is cut.
plan = "bsp/allreduce/topk:0.2+ef+momentum:0.5+warmup:8+min:dims=2"
model = make()
ddp, hook = hooked(model, plan)
optimizer = sgd(model)
train(ddp, range(4), optimizer)
states = saved([model.state_dict(), hook.state_dict()])
train(ddp, range(4, 8), optimizer)
other = make(seed=7)
again, late = hooked(other, plan, state=states[1])
other.load_state_dict(states[0])
train(again, range(4, 8), sgd(other))

# A poisoned step is seen by all, and nothing of it is remembered.
before = saved(hook.state_dict())["memory"]
optimizer.zero_grad()
(loss_of(ddp, 9) * (float("nan") if rank == 1 else 1.0)).backward()
after = hook.state_dict()["memory"]
poisoned = any(bool(p.grad.isnan().any()) for p in model.parameters())
same = all(torch.equal(before[n][k], after[n][k]) for n in before for k in before[n])

# Of a pass whose gradients were dropped nothing enters later steps; of passes that add up, everything does.
kept = {}
for name, extra in {"none": (), "dropped": (7, "drop"), "added": (7,)}.items():
    ours = make()
    wrapped, its = hooked(ours, "bsp/allreduce/topk:0.2+ef")
    steps = sgd(ours)
    train(wrapped, range(2), steps)
    steps.zero_grad()
    for what in extra:
        steps.zero_grad() if what == "drop" else loss_of(wrapped, what).backward()
    loss_of(wrapped, 8).backward()
    steps.step()
    kept[name] = [ours, torch.cat([m["ef"].flatten() for m in its.state_dict()["memory"].values()])]
dropped = apart(kept["none"][0], kept["dropped"][0]) + float((kept["none"][1] - kept["dropped"][1]).abs().max())
added = float((kept["none"][1] - kept["added"][1]).abs().max())

refused = []
for wrong in ("local:4", "bsp/allreduce/none/fusion:1MB"):
    try:
        tw.ddp_hook(wrong)
    except tw.TightwireError as error:
        refused.append(str(error))
try:
    hook.register(ddp)
except tw.TightwireError as error:
    refused.append(str(error))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    tw.ddp_hook(plan).load_state_dict(states[1] | {"workers": 7})
tw.shutdown()
answer({
    "recut": cuts[0] != cuts[-1], "left": max(left), "resumed": apart(model, other), "poisoned": poisoned,
    "same": same, "dropped": dropped, "added": added, "refused": refused, "warned": [str(w.message) for w in caught],
})
"""


def test_training_equals_stock_ddp_and_attach() -> None:
    for end in run_processes(3, SETUP + COMPARE):
        assert len(end.answer) == 12
        assert max(end.answer.values()) < 1e-5, end.answer


def test_state_outlives_new_buckets_and_checkpoints() -> None:
    for end in run_processes(2, SETUP + KEEP):
        found = end.answer
        assert found["recut"]
        assert found["left"] < 1e-6
        assert found["resumed"] == 0.0
        assert found["poisoned"]
        assert found["same"]
        assert found["dropped"] == 0.0
        assert found["added"] > 0.0
        assert "Nearest legal: bsp. Or use" in found["refused"][0]
        assert "cuts buckets itself" in found["refused"][1]
        assert "registered already" in found["refused"][2]
        assert "leftovers and momenta are dropped" in found["warned"][0]
