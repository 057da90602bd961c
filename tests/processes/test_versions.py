"""Ranks whose messages mean different things do not meet, by attach nor under DDP."""

from __future__ import annotations

from tests.workers import run_processes

MEET = """
import tightwire as tw
from torch import nn
from tightwire.compression import Int8
from tightwire.plan import PlanFile, Route
from tightwire.averaging import DoubleSqueeze

tw.init(deadline_s=20)
if rank == 1:
    Int8.wire_version = 2
    DoubleSqueeze.wire_version = 3

def attach(plan):
    model = nn.Linear(4, 3)
    before = [p.detach().clone() for p in model.parameters()]
    try:
        tw.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan).close()
    except tw.TightwireError as error:
        assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before))
        return str(error)
    return ""

def hook(plan):
    made = tw.ddp_hook(plan)
    try:
        made.register(nn.parallel.DistributedDataParallel(nn.Linear(4, 3)))
    except tw.TightwireError as error:
        return str(error)
    return ""

routed = PlanFile(plan="bsp", routing=(Route(match="*weight", compression="int8"),))
inside = "bsp/allreduce/doublesqueeze:int8+ef"
odd = [attach("bsp/allreduce/int8+ef"), attach(routed), attach(inside), hook("bsp/allreduce/int8")]
answer([*odd, attach("bsp/allreduce/int4")])
tw.shutdown()
"""


def test_other_wire_formats_are_refused_and_named() -> None:
    for end in run_processes(2, MEET):
        *refused, same = end.answer
        for said in refused:
            assert "wire format of int8: rank 0 has version 1; rank 1 has version 2" in said
        assert "wire format of doublesqueeze: rank 0 has version 1; rank 1 has version 3" in refused[2]
        assert same == ""
