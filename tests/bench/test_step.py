from dataclasses import replace

import pytest

from tests.command_line import refused
from tightwire.bench import real_step
from tightwire.bench.step import StepBench, bytes_for, default_plans
from tightwire.errors import PlanError
from tightwire.workloads.emulated import DTYPES, Workload, emulated, shaped_like, uniform

# A line that carries 125 MB of payload a second.
RATE = 125e6 * 1514 / 1448


def test_the_bound_is_the_longer_of_compute_and_wire() -> None:
    bench = StepBench(workers=4, rate_bytes_per_s=RATE, workload=uniform(25, 4_000_000, 1.0), plans=("ddp",))
    assert bench.wire_bound_s == pytest.approx(1.5 * 100e6 / 125e6)
    assert bench.bound_s == bench.wire_bound_s
    shorter = StepBench(workers=4, rate_bytes_per_s=RATE, workload=uniform(5, 4_000_000, 1.0), plans=("ddp",))
    assert shorter.bound_s == 1.0


def test_real_tensor_lists_scaled_keep_the_wire_busy_as_asked() -> None:
    for name, tensors in (("resnet50", 161), ("vgg16", 32), ("bert-base", 206)):
        workload = shaped_like(name, bytes_for(2.0, 4, RATE), 1.0)
        assert sum(map(len, workload.layers)) == tensors
        assert sum(workload.shares) == pytest.approx(1.0)
        bench = StepBench(workers=4, rate_bytes_per_s=RATE, workload=workload, plans=default_plans())
        assert bench.wire_bound_s == pytest.approx(2.0, rel=0.01)


def test_layers_read_in_their_order_bound_a_step_too() -> None:
    even = StepBench(workers=4, rate_bytes_per_s=RATE, workload=uniform(25, 4_000_000, 1.0), plans=("ddp",))
    assert even.order_bound_s == pytest.approx(
        even.wire_bound_s + 1.0 / 25
    )  # the last layer, which all others precede
    first = Workload(name="a table first", layers=((50_000_000,), (1,)), shares=(0.0, 1.0), compute_s=1.0)
    table = StepBench(workers=4, rate_bytes_per_s=RATE, workload=first, plans=("ddp",))
    assert table.order_bound_s == pytest.approx(table.wire_bound_s + 1.0)
    unknown = replace(table, workload=replace(first, shares=()))
    assert unknown.order_bound_s == unknown.bound_s


def test_the_emulated_model_reads_its_weights_as_layers_do() -> None:
    import torch

    model = emulated(uniform(3, 400, 0.0))
    seen: list[str] = []
    for name, module in model.named_modules():
        if list(module.parameters(recurse=False)):
            module.register_forward_pre_hook(lambda *_, name=name: seen.append(name))
    model(torch.zeros(1, requires_grad=True))
    assert seen == ["0", "1", "2"]


def test_the_emulated_model_has_all_gradients() -> None:
    import torch

    model = emulated(uniform(3, 400, 0.003))
    model(torch.zeros(1, requires_grad=True)).sum().backward()
    assert [p.grad is not None and p.numel() for p in model.parameters()] == [100] * 3


@pytest.mark.parametrize("plan", ["ddp:size=4", "ddp:bucket_mb=0", "bsp/allreduce/none/nothing"])
def test_what_cannot_be_measured_is_refused(plan: str) -> None:
    with pytest.raises(PlanError):
        StepBench(workers=4, rate_bytes_per_s=RATE, workload=uniform(3, 400, 0.1), plans=(plan,))
    assert plan.rpartition("/")[2] in refused("bench", "step", "--plans", plan)


def test_real_compute_is_the_tours_transformer_on_this_ranks_text() -> None:
    import torch

    for dtype in DTYPES:
        parameters = real_step.Real(0, dtype).model().parameters()
        assert real_step.workload(dtype).num_bytes == sum(p.nbytes for p in parameters)
    losses = []
    for rank in (0, 1):
        subject = real_step.Real(rank, "float32")
        model = subject.model()
        with torch.no_grad():
            losses.append([float(subject.loss(model)) for _ in range(2)])
    assert len({*losses[0], *losses[1]}) == 4


def test_real_compute_has_one_model() -> None:
    assert "leave out one of the two" in refused("bench", "step", "--real", "--workload", "vgg16")
    assert "float32 or bfloat16" in refused("bench", "step", "--real", "--dtype", "fp8")
    assert "add --real" in refused("bench", "step", "--dtype", "bfloat16")
