"""Published iteration times of large transformers, all held out: constants are fitted on one other family of runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from tightwire.errors import PlanError
from tightwire.parallel import Accelerators, Layout, TrainingCost, Transformer, predict_iteration, transformer
from tightwire.parallel.layout import divisors
from tightwire.profile.devices import DEVICES
from tightwire.validate import megatron, published
from tightwire.validate.fitting import as_numbers
from tightwire.validate.table import Point, Table

# NVIDIA's data sheets, H100 over A100: 900 and 600 GB/s of NVLink, one 400 and one 200 Gb/s line per device.
NVLINK_OF_H100, LINE_OF_H100 = 1.5, 2.0
MAX_MICRO_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class PublishedRun:
    """One published run.

    Attributes:
        source: the paper's short name.
        model: that was trained.
        layouts: as published; several where the paper does not tell the micro-batch and took the best.
        training: the batch, and what kernels did.
        device: its name.
        seconds: of an iteration.
    """

    source: str
    model: Transformer
    layouts: tuple[Layout, ...]
    training: TrainingCost
    device: str
    seconds: float

    def predict(self) -> float:
        """Returns the predicted seconds: the best layout's."""
        devices = constants(self.device)
        times = [predict_iteration(self.model, how, self.training, devices).seconds for how in self.layouts]
        return min(times)


def table() -> Table:
    """Predicts every published run by constants fitted on the sweep over layouts of `megatron` alone."""
    points = [
        Point(
            name=f"{run.source}: {run.layouts[0].workers} × {run.device}, {run.layouts[0]}",
            group=run.source,
            measured=run.seconds,
            predicted=run.predict(),
        )
        for run in runs()
    ]
    return Table(
        name="transformers",
        points=tuple(points),
        target={"mape": 0.10},
        note="Published runs of 1.7 to 1,000 billion parameters on 8 to 16,384 devices; no constant saw any; seconds.",
        constants=as_numbers(constants("a100")),
    )


@cache
def constants(device: str) -> Accelerators:
    """Returns the constants of A100s as fitted on the sweep, for other devices scaled by their data sheets."""
    fitted = megatron.fitted_without(())
    if device == "a100":
        return fitted
    a100, other = DEVICES["a100"], DEVICES[device]
    prior = Accelerators.of(other)
    memory = other.memory_bytes_per_s / a100.memory_bytes_per_s
    return dataclasses.replace(
        fitted,
        flops_per_s=prior.flops_per_s,
        peak_flops_per_s=prior.peak_flops_per_s,
        memory_bytes_per_s=fitted.memory_bytes_per_s * memory,
        launch_s=fitted.launch_s / memory,
        optimizer_s_per_parameter=fitted.optimizer_s_per_parameter / memory,
        inside_bytes_per_s=fitted.inside_bytes_per_s * NVLINK_OF_H100,
        across_bytes_per_s=fitted.across_bytes_per_s * LINE_OF_H100,
    )


def runs() -> Iterator[PublishedRun]:
    """Yields what was published."""
    for row in published.read("transformer_iterations.csv"):
        model = dataclasses.replace(transformer(row["model"]), seq_len=int(row["seq_len"]))
        if row["heads"]:
            model = dataclasses.replace(model, heads=int(row["heads"]), vocabulary=int(row["vocabulary"]))
        training = TrainingCost(
            batch=int(row["batch"]), fused=row["fused"] == "1", overlaps=row["overlaps"] == "1"
        )
        yield PublishedRun(
            source=row["source"],
            model=model,
            layouts=tuple(_layouts(row)),
            training=training,
            device=row["device"],
            seconds=float(row["seconds"]) if row["seconds"] else _seconds(row, model),
        )


def _layouts(row: dict[str, str]) -> Iterator[Layout]:
    inner = int(row["tensor"]) * int(row["context"]) * int(row["pipeline"])
    data = int(row["gpus"]) // inner
    told = int(row["micro_batch"])
    share = int(row["batch"]) // data
    for micro_batch in [told] if told else [b for b in divisors(share) if b <= MAX_MICRO_BATCH]:
        yield Layout.parse(
            {
                "data": data,
                "shard": row["shard"] if data * int(row["context"]) > 1 else "none",
                "tensor": row["tensor"],
                "sequence": row["sequence"],
                "context": row["context"],
                "pipeline": row["pipeline"],
                "schedule": row["schedule"],
                "chunks": row["chunks"],
                "recompute": row["recompute"],
                "micro_batch": micro_batch,
            }
        )


def _seconds(row: dict[str, str], model: Transformer) -> float:
    """Returns the time of an iteration from the operations that the source counted per second and device."""
    logits = 2 * model.seq_len * model.hidden * model.vocabulary
    causal = row["counted"] == "causal"
    layers = model.layers * (model.product_flops() + model.core_flops(causal))
    if row["counted"] not in ("again", "causal"):
        raise PlanError(
            f"{row['source']}: counted={row['counted']!r} says not which operations were counted."
        )
    # Narayanan et al. count the forward pass that is computed again; the logits are not.
    flops = (4 if row["counted"] == "again" else 3) * layers + 3 * logits
    return flops * int(row["batch"]) / int(row["gpus"]) / (float(row["tflops_per_gpu"]) * 1e12)
