"""The laws of reductions over real Gloo processes, and training under each."""

from __future__ import annotations

from typing import Any

from tests.workers import run_processes

REDUCTIONS = (
    "powersgd:2",
    "gtopk:0.01",
    "oktopk:0.01",
    "sparcml:0.01",
    "doublesqueeze:topk:0.01",
    "doublesqueeze:int8",
    "atomo:2",
    "layertopk:0.01",
    "layertopk:0.01,by=norm",
    "sketch:0.01",
)

SCRIPT = """
import hashlib
from tightwire.buckets import plan_layout
from tightwire.architecture import AllReduce
from tightwire.catalogue import parse_compression
from tightwire.averaging import build_averager

SHAPES = [(300, 200), (300,), (100, 50, 3, 3), (10, 1001)]
layout = plan_layout({f"t{i}": torch.empty(s) for i, s in enumerate(SHAPES)}, [range(4)])[0]

def inputs(r, turn):
    return torch.randn(layout.numel, generator=torch.Generator().manual_seed(10 * turn + r))

def average(net, text, number):
    counting = transport.Counting(net)
    reducer = build_averager(AllReduce(), parse_compression(text)[0], counting, bucket=layout, number=number)
    for turn in range(3):
        counting.tally.clear()
        work, mean = inputs(rank, turn), torch.empty(layout.numel)
        reducer.run(work, mean, seed=turn)
        reducer.keep()
        assert counting.bytes_sent == reducer.bytes_sent > 0
    net.all_reduce(work).wait()
    expected = (sum(inputs(r, turn) for r in range(size)) - work) / size
    return [float((mean - expected).abs().max()), hashlib.sha256(mean.numpy().tobytes()).hexdigest()]

net = transport.init(deadline_s=20)
answer({text: average(net, text, number) for number, text in enumerate(REDUCTIONS)})
"""


def test_mean_traffic_and_agreement_over_gloo() -> None:
    answers: list[dict[str, Any]] = [
        end.answer for end in run_processes(3, f"REDUCTIONS = {REDUCTIONS}\n" + SCRIPT)
    ]
    for text, (worst, digest) in answers[0].items():
        assert worst < 1e-5, text
        assert {answer[text][1] for answer in answers} == {digest}, text


TRAIN = """
import hashlib
import tightwire as tw
tw.init(deadline_s=20)

def train(plan):
    torch.manual_seed(rank)
    model = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.Tanh(), torch.nn.Linear(30, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tw.attach(model, optimizer, plan) as run:
        for step in range(40):
            x = torch.randn(16, 20, generator=torch.Generator().manual_seed(100 * step + rank))
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(x), x[:, :3].argmax(1))
            loss.backward()
            optimizer.step()
    report = run.report()
    assert report.sent_bytes == report.planned_bytes > 0, report
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    return [loss.item(), hashlib.sha256(flat.numpy().tobytes()).hexdigest()]

answer({plan: train(plan) for plan in ["bsp", *(f"bsp/allreduce/{text}/fusion:1KB" for text in COMPRESSIONS)]})
tw.shutdown()
"""


def test_training_under_each() -> None:
    texts = [text.replace("0.01", "0.1") + "+ef" * ("atomo" not in text) for text in REDUCTIONS]
    answers = [end.answer for end in run_processes(3, f"COMPRESSIONS = {texts}\n" + TRAIN)]
    dense = answers[0]["bsp"][0]
    for plan, (loss, digest) in answers[0].items():
        assert loss < dense + 0.2, plan
        assert {answer[plan][1] for answer in answers} == {digest}, plan
