"""A step of real compute under every schedule, beside stock DDP, the same compute without exchange, and the bound.

The tour's transformer on real text, one core per worker. The launching half builds the lab, the working half,
`python -m tightwire.bench.real_step JSON`, runs on its hosts. Nothing is told in advance of compute: the bound's is
measured in the same processes, all of them computing at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tightwire.bench.step import (
    ALONE,
    DDP,
    DDP_SIZES_MB,
    StepBench,
    StepRow,
    measure_in,
    topology_of,
)
from tightwire.bench.step_worker import StepWorker, read
from tightwire.errors import LabError
from tightwire.lab import Lab
from tightwire.workloads.emulated import Workload

if TYPE_CHECKING:
    import torch
    from torch import nn

PLANS = (
    DDP,
    *(f"{DDP}:bucket_mb={size}" for size in DDP_SIZES_MB),
    *(f"bsp/allreduce/none/{name}" for name in ("wfbp", "mgwfbp", "bytescheduler", "dear", "auto")),
)
SEQUENCES = 4  # per worker and step, as in the tour
NAME = "transformer"


def workload(dtype: str = "float32") -> Workload:
    """Returns the transformer's tensors in a dtype of `workloads.emulated.DTYPES`; compute is yet to be measured."""
    from tightwire.workloads.transformer import ByteTransformer

    sizes = tuple((p.numel(),) for p in ByteTransformer().parameters())
    return Workload(name=NAME, layers=sizes, shares=(), compute_s=0.0, dtype=dtype)


def measure(
    bench: StepBench, on_row: Callable[[StepRow], None] = lambda row: None
) -> tuple[StepBench, list[StepRow], str]:
    """Runs the bench in a lab, under the machine's default scheduling.

    Returns:
        The bench with the measured compute in its workload; the rows, `alone` first; what the lab says of itself.

    Raises:
        LabError: no lab is possible here, or its workers failed.
    """
    with Lab(topology_of(bench)) as lab:
        rows, about = measure_in(lab, bench, __name__, on_row)
    if not rows or rows[0].plan != ALONE:
        raise LabError("the bench ended without measuring compute. Its workers' output says why.")
    return (
        replace(bench, workload=replace(bench.workload, compute_s=rows[0].step_s)),
        rows,
        about + " Compute is real.",
    )


class Real:
    """The transformer, and this rank's passages of the text."""

    def __init__(self, rank: int, dtype: str) -> None:
        import torch

        from tightwire.workloads.text import standard_library

        self._dtype: torch.dtype = getattr(torch, dtype)
        self._text = standard_library().train
        self._generator = torch.Generator().manual_seed(1 + rank)

    def model(self) -> nn.Module:
        """Builds the model, its parameters and gradients of the dtype."""
        import torch

        from tightwire.workloads.transformer import ByteTransformer

        torch.manual_seed(0)
        model = ByteTransformer()
        self._length = model.length
        return model if self._dtype == torch.float32 else _stored_as(self._dtype, model)

    def loss(self, called: Callable[[Any], Any]) -> Any:
        """Returns the loss of fresh passages."""
        from tightwire.workloads.text import draw

        passages = draw(self._text, sequences=SEQUENCES, length=self._length, generator=self._generator)
        return called(passages)


def _stored_as(dtype: torch.dtype, model: nn.Module) -> nn.Module:
    """Returns the model with parameters of another dtype; it computes in float32, as few processors know that dtype."""
    from torch import nn
    from torch.func import functional_call

    class Stored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model.to(dtype)

        def forward(self, *args: Any) -> Any:
            wide = {name: parameter.float() for name, parameter in self.model.named_parameters()}
            return functional_call(self.model, wide, args)

    return Stored()


def main() -> None:
    """Measures. Every worker."""
    import tightwire.transport as transport

    bench = read(sys.argv[1])
    StepWorker(bench, Real(transport.init().rank, bench.workload.dtype)).run_beside_alone()


if __name__ == "__main__":
    main()
