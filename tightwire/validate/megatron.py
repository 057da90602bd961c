"""Tensor, data and pipeline parallelism against Megatron-LM on A100s, each configuration family predicted unseen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from tightwire.parallel import Accelerators, Layout, TrainingCost, Transformer, predict_iteration
from tightwire.validate import published
from tightwire.validate.fitting import Prior, as_numbers, fit
from tightwire.validate.table import Point, Table, deviation_of, interval

SWEEP, MORE = "megatron_a100_iterations.csv", "megatron_a100_more_iterations.csv"
# Peaks and rates that A100 nodes are known to reach: NVIDIA A100 data sheet (312 TFLOP/s, 2 TB/s, NVLink 300 GB/s each
# way, one 200 Gb/s line per device), less what large products, passes and rings lose.
PRIORS = {
    "flops_per_s": Prior(value=2.2e14, spread=0.15),
    "memory_bytes_per_s": Prior(value=1.2e12, spread=0.4),
    "launch_s": Prior(value=5e-3, spread=0.5),
    "inside_bytes_per_s": Prior(value=2.29e11, spread=0.1),
    "across_bytes_per_s": Prior(value=2.1e10, spread=0.15),
    "inside_latency_s": Prior(value=8e-5, spread=1.0),
    "across_latency_s": Prior(value=1e-4, spread=1.0),
    "optimizer_s_per_parameter": Prior(value=4e-11, spread=1.0),
}


@dataclass(frozen=True, kw_only=True)
class MegatronCase:
    """One measured configuration."""

    model: Transformer
    how: Layout
    global_batch: int
    seconds: float

    @property
    def family(self) -> tuple[int, ...]:
        """What is left out together: a model and a cut of it, at any micro-batch."""
        return self.model.hidden, self.how.tensor, self.how.data, self.how.pipeline


def predict(devices: Accelerators, case: MegatronCase) -> float:
    """Returns the predicted seconds of an iteration."""
    training = TrainingCost(batch=case.global_batch, fused=False, overlaps=False)
    return predict_iteration(case.model, case.how, training, devices).seconds


def table() -> Table:
    """Predicts every family by constants fitted on all others."""
    known = tuple(cases())
    fitted = {family: fitted_without(family) for family in dict.fromkeys(case.family for case in known)}
    points = (
        Point(
            name=f"{case.model.hidden} wide: {case.how}",
            group=f"{case.model.hidden} wide on {case.how.workers}",
            measured=case.seconds,
            predicted=predicted,
            stated=interval(predicted, deviation_without(case.family)),
        )
        for case in known
        if (predicted := predict(fitted[case.family], case))
    )
    return Table(
        name="Megatron",
        points=tuple(points),
        better="low",
        target={"mape": 0.147, "regret": 0.03},
        note="A family of configurations left out at a time, eight constants fitted on the others; seconds.",
        constants=as_numbers(fitted_without(())),
    )


def more_table() -> Table:
    """Predicts models of other sizes by constants fitted on all that are above; no constant saw any."""
    devices = fitted_without(())
    points = (
        Point(
            name=f"{case.model.hidden} wide: {case.how}",
            group=f"{case.model.hidden} wide on {case.how.workers}",
            measured=case.seconds,
            predicted=predicted,
            stated=interval(predicted, deviation_without(())),
        )
        for case in cases(MORE)
        if (predicted := predict(devices, case))
    )
    return Table(
        name="Megatron, more",
        points=tuple(points),
        better="low",
        target={"mape": 0.1},
        note="Of 18.4 and 175 billion parameters on 256 and 512 A100, by the constants of the table above; seconds.",
    )


@cache
def fitted_without(family: tuple[int, ...]) -> Accelerators:
    """Returns the constants fitted on every family but this one."""
    others = [(case, case.seconds) for case in cases() if case.family != family]
    return fit(Accelerators, PRIORS, predict, others)


@cache
def deviation_without(family: tuple[int, ...]) -> float:
    """Returns how far families were predicted off that were left out beside this one: two are left out, one counts.

    What is left inside a fit says too little of a family that nobody saw.
    """
    others = [case for case in cases() if case.family != family]
    return deviation_of(((predict(fitted_without(case.family), case), case.seconds) for case in others), 0)


def cases(file: str = SWEEP) -> Iterator[MegatronCase]:
    """Yields what was measured."""
    for row in published.read(file):
        number = {name: float(value) for name, value in row.items()}
        yield MegatronCase(
            model=Transformer(
                layers=int(number["layers"]),
                hidden=int(number["hidden"]),
                heads=int(number["heads"]),
                seq_len=int(number["seq_len"]),
            ),
            how=Layout(
                tensor=int(number["tensor_parallel"]),
                data=int(number["data_parallel"]),
                pipeline=int(number["pipeline_parallel"]),
                micro_batch=int(number["micro_batch"]),
            ),
            global_batch=int(number["global_batch"]),
            seconds=number["iteration_ms"] / 1e3,
        )
