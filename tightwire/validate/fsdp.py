"""Fully sharded training (PyTorch's FSDP) as its users measured it, held to what `tightwire parallel` predicts.

No constant is fitted to it: they are those of Megatron-LM on A100s, for H200s scaled by data sheets. The width of the
interval that sharded layouts state was set on these runs.
The sources do not tell the network between nodes; the constants' is taken, one line a device. Gradients of several
micro-batches are averaged once, as the script of the runs has it (KempnerForge, `training/grad.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from tightwire.parallel import Layout, TrainingCost, Transformer, predict_iteration, transformer
from tightwire.parallel.candidates import residual_of
from tightwire.validate import published
from tightwire.validate.table import Table, interval
from tightwire.validate.transformers import constants
from tightwire.validate.unfitted import points_of


@dataclass(frozen=True, kw_only=True)
class FsdpCase:
    """One measured run.

    Attributes:
        source: the report's short name.
        model: that was trained.
        how: it was cut.
        device: its name.
        per_node: devices in a node.
        batch: sequences per step, over all devices.
        figure: seconds of a step.
    """

    source: str
    model: Transformer
    how: Layout
    device: str
    per_node: int
    batch: int
    figure: float

    @property
    def name(self) -> str:
        """Who measured what on which devices."""
        return f"{self.source}: {self.how.workers} × {self.device}, {self.model.hidden} wide, {self.how}"

    @property
    def group(self) -> str:
        """Layouts compete for one model on so many devices."""
        return f"{self.source}, {self.model.hidden} wide on {self.how.workers}"

    def stated(self, predicted: float) -> tuple[float, float]:
        """Returns the interval that `tightwire parallel` states for such a layout."""
        return interval(predicted, residual_of(self.how))

    def predict(self) -> float:
        """Returns the predicted seconds."""
        devices = dataclasses.replace(constants(self.device), devices_per_node=self.per_node)
        training = TrainingCost(batch=self.batch, sums_whole=True)
        return predict_iteration(self.model, self.how, training, devices).seconds


def table() -> Table:
    """Predicts every run, with the interval that `tightwire parallel` states for such a layout."""
    return Table(
        name="FSDP",
        points=points_of(cases()),
        better="low",
        target={"mape": 0.15},
        note="Llamas of 7 to 70 billion parameters on 1 to 160 H200 and 128 A100; no constant saw any; how wide the "
        "interval of sharded layouts is was set on them; seconds.",
    )


def cases() -> Iterator[FsdpCase]:
    """Yields what was measured."""
    for row in published.read("fsdp_iterations.csv"):
        model = dataclasses.replace(transformer(row["model"]), seq_len=int(row["seq_len"]))
        data = int(row["gpus"]) // int(row["tensor"])
        batch = data * int(row["micro_batch"]) * int(row["accumulated"])
        yield FsdpCase(
            source=row["source"],
            model=model,
            how=Layout.parse(
                {
                    "data": data,
                    "shard": "zero3" if data > 1 else "none",
                    "shard_group": row["shard_group"] if data > 1 else 0,
                    "tensor": row["tensor"],
                    "sequence": int(row["tensor"]) > 1,
                    "micro_batch": row["micro_batch"],
                    "recompute": row["recompute"],
                }
            ),
            device=row["device"],
            per_node=int(row["per_node"]),
            batch=batch,
            figure=batch * model.seq_len / float(row["tokens_per_s"]),
        )
