"""The hook for FSDP2: the training of native HSDP where nothing is lost, compression on the slow leg, checkpoints."""

from __future__ import annotations

from tests.workers import run_processes

PRELOAD = ("tightwire.integrations.fsdp", "torch.distributed.fsdp", "torch.distributed.tensor")
SETUP = """
import copy, io, warnings
import tightwire as tw
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
warnings.simplefilter("ignore")
tw.init(deadline_s=20)
mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicas", "shards"))

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 31), nn.Tanh(), nn.Sequential(nn.Linear(31, 20), nn.Tanh()), nn.Linear(20, 5))

def make(inner):
    model = net()
    fully_shard(model[2], mesh=inner)
    fully_shard([model[1], model[3]], mesh=inner)  # a unit of several modules
    fully_shard(model, mesh=inner)
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

def train(model, optimizer, steps):
    for step in steps:
        g = torch.Generator().manual_seed(100 * step + rank)
        x, y = torch.randn(8, 20, generator=g), torch.randn(8, 5, generator=g)
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
    return float(loss)

def values(model):
    return torch.cat([p.full_tensor().detach().flatten() for p in model.parameters()])
"""
COMPARE = """
stock, optimizer = make(mesh)
train(stock, optimizer, range(4))
model, optimizer = make(mesh["shards"])
hook = tw.fsdp_hook(model, "bsp")
train(model, optimizer, range(4))
assert hook.rounds == 4 and hook.replicas == 2
assert hook.sent_bytes == hook.planned_bytes > 0
answer(float((values(model) - values(stock)).abs().max()))
"""
COMPRESSED = """
def saved(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)

found = {}
for plan in ("bsp/allreduce/int8+ef", "bsp/allreduce/topk:0.3+ef", "bsp/allreduce/powersgd:2+ef"):
    model, optimizer = make(mesh["shards"])
    hook = tw.fsdp_hook(model, plan)
    train(model, optimizer, range(4))
    assert hook.sent_bytes == hook.planned_bytes > 0, plan
    state = saved(hook.state_dict())
    parameters, momenta = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    assert set(state["memory"]) <= {name for name, _ in model.named_parameters()}
    train(model, optimizer, range(4, 7))
    again, optimizer = make(mesh["shards"])
    again.load_state_dict(parameters)
    optimizer.load_state_dict(momenta)
    resumed = tw.fsdp_hook(again, plan)
    resumed.load_state_dict(state)
    train(again, optimizer, range(4, 7))
    here, there = values(model), values(again)
    found[plan] = [bool(here.isfinite().all()), torch.equal(here, there), len(state["memory"])]
answer(found)
"""
# Two groups of two, against two plain replicas in one process that average by hand: FSDP's mean over its group is that
# of the group's batches.
ROUNDS = """
def plain_local(steps, H, outer):
    replicas = []
    for group in range(2):
        model = net()
        replicas.append((model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)))
    start = [p.detach().clone() for p in replicas[0][0].parameters()]
    anchors = [nn.Parameter(p) for p in start]
    step_with = torch.optim.SGD(anchors, lr=0.7 if outer else 1.0, momentum=0.9 if outer else 0.0, nesterov=outer)
    for step in range(steps):
        for group, (model, optimizer) in enumerate(replicas):
            optimizer.zero_grad()
            for rank in (2 * group, 2 * group + 1):
                g = torch.Generator().manual_seed(100 * step + rank)
                x, y = torch.randn(8, 20, generator=g), torch.randn(8, 5, generator=g)
                ((model(x) - y).square().mean() / 2).backward()
            optimizer.step()
        if (step + 1) % H == 0:
            ends = zip(*(model.parameters() for model, _ in replicas))
            for anchor, (a, b) in zip(anchors, ends):
                anchor.grad = anchor.detach() - (a.detach() + b.detach()) / 2
            step_with.step()
            with torch.no_grad():
                for model, _ in replicas:
                    for p, anchor in zip(model.parameters(), anchors):
                        p.copy_(anchor)
    return torch.cat([p.detach().flatten() for p in replicas[0][0].parameters()])

found = {}
plans = "local:3 local:3,state=averaged diloco:3 local:3/allreduce/int8+ef diloco:4/allreduce/topk:0.5+ef/streaming:2"
for plan in plans.split():
    model, optimizer = make(mesh["shards"])
    with torch.no_grad():
        for p in model.parameters():
            p.to_local().add_(rank // 2)  # groups begin as the first
    with tw.fsdp_hook(model, plan, optimizer=optimizer) as hook:
        train(model, optimizer, range(5))
        state, parameters = copy.deepcopy(hook.state_dict()), copy.deepcopy(model.state_dict())
        momenta = copy.deepcopy(optimizer.state_dict())
        with hook.evaluating():
            lent = float(model(torch.ones(1, 20)).sum())
        train(model, optimizer, [5])
        hook.finish()
        assert hook.replicas == 2 and hook.sent_bytes == hook.planned_bytes > 0, plan
    again, optimizer = make(mesh["shards"])
    with tw.fsdp_hook(again, plan, optimizer=optimizer) as resumed:
        again.load_state_dict(parameters)
        optimizer.load_state_dict(momenta)
        resumed.load_state_dict(state)
        train(again, optimizer, [5])
    apart = float((values(model) - plain_local(6, 3, "diloco" in plan)).abs().max())
    kept = torch.cat([optimizer.state[p]["momentum_buffer"].full_tensor().flatten() for p in again.parameters()])
    state = float(kept.sum()) if "averaged" in plan else 0.0
    found[plan] = [apart, torch.equal(values(model), values(again)), float(values(model).sum()), lent, state]

model, optimizer = make(mesh["shards"])
hook = tw.fsdp_hook(model, "local:2", optimizer=optimizer)
train(model, optimizer, range(2))
before = values(model)
train(model, optimizer, [2])
if rank == 3:
    with torch.no_grad():
        model[0].weight.to_local()[0, 0] = float("nan")
hook.finish()  # one shard of one group is spoiled: the round is dropped in all
found["dropped"] = torch.equal(values(model), before)
answer(found)
"""
REFUSED = """
def said(call):
    try:
        call()
    except tw.TightwireError as error:
        return str(error)
    return ""

native, _ = make(mesh)
plain = nn.Linear(2, 2)
sharded, _ = make(mesh["shards"])
with torch.device("meta"):
    empty = nn.Linear(20, 20)
fully_shard(empty, mesh=mesh["shards"])
optimizer = torch.optim.SGD(empty.parameters(), lr=0.1)
answer([
    said(lambda: tw.fsdp_hook(native, "bsp")),
    said(lambda: tw.fsdp_hook(plain, "bsp")),
    said(lambda: tw.fsdp_hook(sharded, "delayed:1")),
    said(lambda: tw.fsdp_hook(sharded, "bsp/gossip:ring")),
    said(lambda: tw.fsdp_hook(sharded, "bsp/allreduce/none/mgwfbp")),
    said(lambda: tw.fsdp_hook(sharded, "local:4")),
    said(lambda: tw.fsdp_hook(empty, "local:4", optimizer=optimizer)),
])
"""


# A stand-in for torchtitan's ModelSpec and ParallelDims, by which it wraps HSDP; gradients add up, as there.
TITAN = """
import dataclasses, types
from tightwire.integrations.torchtitan import between_groups

@dataclasses.dataclass
class Spec:
    parallelize_fn: object
    post_optimizer_build_fn: object

def parallelise(model, *, parallel_dims):
    inner = mesh if parallel_dims.dp_replicate > 1 else mesh["shards"]
    for module in (model[2], model):
        fully_shard(module, mesh=inner)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    return model

def trained(spec, steps):
    dims = types.SimpleNamespace(dp_replicate=2)
    model = spec.parallelize_fn(net(), parallel_dims=dims)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    if spec.post_optimizer_build_fn is not None:
        spec.post_optimizer_build_fn([optimizer], [model], dims)
    train(model, optimizer, range(steps))
    return values(model)

hooks = []
stock = Spec(parallelise, None)
native = trained(stock, 4)
found = [
    float((trained(between_groups(stock, plan, on_hook=hooks.append), 4) - native).abs().max())
    for plan in ("bsp", "local:1", "diloco:2/allreduce/int8+ef")
]
assert [hook.rounds for hook in hooks] == [4, 4, 2]
answer(found)
"""


def test_torchtitan_adds_up_what_groups_of_fsdp_send() -> None:
    for end in run_processes(4, SETUP + TITAN, preload=PRELOAD):
        bsp, local, diloco = end.answer
        assert bsp < 1e-5
        assert local < 1e-5  # SGD is linear in the gradient
        assert 0 < diloco < 1


def test_lossless_it_trains_as_native_hsdp() -> None:
    for end in run_processes(4, SETUP + COMPARE, preload=PRELOAD):
        assert end.answer < 1e-5


def test_compressed_it_trains_and_its_state_is_by_name() -> None:
    for end in run_processes(4, SETUP + COMPRESSED, preload=PRELOAD):
        assert all(finite and resumed and kept for finite, resumed, kept in end.answer.values())


def test_groups_that_agree_in_rounds_train_as_local_sgd_and_diloco_of_plain_replicas() -> None:
    ends = run_processes(4, SETUP + ROUNDS, preload=PRELOAD)
    found = ends[0].answer
    assert all(end.answer == found for end in ends), "all groups evaluate and end alike"
    assert found.pop("dropped")
    assert all(resumed for _, resumed, *_ in found.values())
    assert found["local:3"][0] < 1e-6
    assert found["diloco:3"][0] < 1e-6
    assert found["local:3/allreduce/int8+ef"][0] < 0.05


def test_what_cannot_be_hooked_is_refused_with_what_to_do() -> None:
    for end in run_processes(4, SETUP + REFUSED, preload=PRELOAD):
        native, plain, sync, architecture, schedule, rounds, meta = end.answer
        assert "with both, FSDP averages between groups itself" in native
        assert "seen 0 FSDP modules" in plain
        assert "Nearest legal: bsp" in sync
        assert "brings none" in architecture
        assert "Nearest legal: bsp." in schedule
        assert "optimizer=optimizer" in rounds
        assert "on the meta device" in meta
