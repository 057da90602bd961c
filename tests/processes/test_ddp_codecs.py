"""Under stock DDP every compression works, across its rebuilt buckets, checkpoints and loss scaling alike."""

from __future__ import annotations

from tests.workers import run_processes
from tightwire.catalogue import catalogue
from tightwire.errors import PlanError
from tightwire.plan import Plan

SETUP = """
import copy, io
import tightwire as tw
from torch import nn

tw.init(deadline_s=40)

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 5))

def loss_of(model, step):
    g = torch.Generator().manual_seed(100 * step + rank)
    x, y = torch.randn(8, 20, generator=g), torch.randn(8, 5, generator=g)
    return (model(x) - y).square().mean()

def hooked(model, compression, **options):
    ddp = nn.parallel.DistributedDataParallel(model, bucket_cap_mb=0.001)
    hook = tw.ddp_hook(f"bsp/allreduce/{compression}", **options)
    hook.register(ddp)
    return ddp, hook

def same_everywhere(model):
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    return bool(flat.isfinite().all()) and len(set(transport.current().exchange(flat.numpy().tobytes()))) == 1
"""

EVERY = """
wrong = []
for compression in COMPRESSIONS:
    model = make()
    ddp, hook = hooked(model, compression)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(4):
        optimizer.zero_grad()
        loss_of(ddp, step).backward()
        optimizer.step()
        if step == 2:  # buckets were cut anew by now
            hook.load_state_dict(copy.deepcopy(hook.state_dict()))
    if not (hook.sent_bytes == hook.planned_bytes > 0 and same_everywhere(model) and hook.rounds == 4):
        wrong.append(compression)
    hook.close()

# The plan tells the optimizer from which rounds its variance learns.
from tightwire.optim import OneBitAdam
model = make()
ddp, hook = hooked(model, "onebit-adam:3")
optimizer = OneBitAdam(model.parameters())
hook.configure_variance(optimizer)
for step in range(6):
    optimizer.zero_grad()
    loss_of(ddp, step).backward()
    optimizer.step()
if {s["learnt"] for s in optimizer.state.values()} != {3} or not same_everywhere(model):
    wrong.append("teach")
try:
    hook.configure_variance(torch.optim.Adam(model.parameters()))
    wrong.append("untaught")
except tw.TightwireError as error:
    assert "OneBitLamb" in str(error)
answer(wrong)
tw.shutdown()
"""

AMP = """
class Poison(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return x.clone()
    @staticmethod
    def backward(ctx, g): return g * float("inf")

def kept(hook):
    return {n: {k: t.clone() for k, t in kinds.items()} for n, kinds in hook.state_dict()["memory"].items()}

found = {}
for compression in ("topk:0.2+ef", "onebit+ef+dense-every:3", "int4+ef+momentum:0.5", "topk:0.2+ef21"):
    ends = []
    for scaled in (False, True):
        model = make()
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1000, enabled=scaled)
        ddp, hook = hooked(model, compression, scaler=scaler)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(5):
            optimizer.zero_grad()
            loss = loss_of(ddp, step)
            if scaled and step == 2:  # an overflow on one rank
                before = kept(hook), [p.detach().clone() for p in model.parameters()]
                ddp_loss = Poison.apply(loss) if rank == 1 else loss
                scaler.scale(ddp_loss).backward()
                scaler.step(optimizer)
                scaler.update()
                assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before[1]))
                now = kept(hook)
                assert all(torch.equal(now[n][k], before[0][n][k]) for n in now for k in now[n])
                assert scaler.get_scale() == 512.0
                hook.rounds -= 1  # this round is run again
                optimizer.zero_grad()
                loss = loss_of(ddp, step)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        ends.append((torch.cat([p.detach().flatten() for p in model.parameters()]), kept(hook)))
        assert same_everywhere(model)
        hook.close()
    (plain, left), (scaled_up, scaled_left) = ends
    worst = max(float((left[n][k] - scaled_left[n][k]).abs().max()) for n in left for k in left[n])
    found[compression] = max(worst, float((plain - scaled_up).abs().max()))
answer(found)
tw.shutdown()
"""


def compressions() -> list[str]:
    """Returns an example of every member that goes with an all-reduce of gradients."""
    texts = []
    for member in catalogue("compression").values():
        text = member.example or member.name
        try:
            Plan.parse(f"bsp/allreduce/{text}")
        except PlanError:
            continue
        texts.append(text)
    return texts


def test_every_compression_works_under_ddp() -> None:
    texts = compressions()
    assert len(texts) > 30
    ended = run_processes(2, f"COMPRESSIONS = {texts!r}\n{SETUP}{EVERY}", timeout_s=300)
    assert [end.answer for end in ended] == [[], []]


def test_leftovers_are_unscaled_and_a_skipped_step_leaves_no_trace() -> None:
    for end in run_processes(2, SETUP + AMP, timeout_s=180):
        assert len(end.answer) == 4
        assert max(end.answer.values()) < 1e-5, end.answer
