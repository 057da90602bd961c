"""Has a training script's plans race, whatever plan the script names: runs it on every worker of a lab.

python -m tightwire.study.raced '{"budget": "10min", "share": 0.02, ...}' train.py --batch 32

The script needs no change: what it attaches with is replaced by a race, and a loss is what `backward()` is called on.
"""

from __future__ import annotations

import json
import logging
import os
import pathlib
import runpy
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import tightwire
from tightwire import _attach
from tightwire.errors import AttachError
from tightwire.planner import Allowance
from tightwire.runtime import Contender, Race, Run

RESULT = '{"race"'


class _Raced:
    """The run that the script attached, its race, and what happens when that is over."""

    def __init__(self, race: Race, allow: Allowance, *, trains_on: bool) -> None:
        self._race, self._allow, self._trains_on = race, allow, trains_on
        self._attach = _attach.attach
        self._backward: Callable[..., None] = Tensor.backward
        self._run: Run | None = None
        self._is_told = False

    def attach(self, model: Any, optimizer: Any, plan: Any = None, **options: Any) -> Run:
        """Attaches as the script does, with a race for a plan; nothing is kept of it, nor taken from what was."""
        if self._run is not None:
            raise AttachError("the script attaches twice, and one race is run at a time; race them apart.")
        raced = {"allow": self._allow, "keep": None, "remember": 0}
        self._run = self._attach(model, optimizer, self._race, **options | raced)
        return self._run

    def backward(self, tensor: Tensor, *args: Any, **kwargs: Any) -> None:
        """Tells the loss; once the race is over, prints how it went, and ends the script unless it is to go on."""
        if (run := self._run) is not None and tensor.numel() == 1:
            if run.is_settled and not self._is_told:
                self._is_told = True
                self._end(run)
            run.report_loss(tensor)
        self._backward(tensor, *args, **kwargs)

    def _end(self, run: Run) -> None:
        report = run.report()
        if run.transport.rank == 0:
            print(json.dumps({"race": result(report.contenders, report.plan, report.why)}), flush=True)
        if not self._trains_on:
            run.ask("")  # nobody's connections close while somebody waits
            sys.stderr.flush()
            os._exit(0)


def result(contenders: tuple[Contender, ...], winner: str, why: tuple[str, ...]) -> dict[str, Any]:
    """Returns what `tightwire race --json` prints."""
    return {
        "contenders": [_plain(contender) for contender in contenders],
        "winner": winner,
        "cost_s": sum(c.seconds for c in contenders if c.plan != winner),
        "why": why,
    }


def _plain(contender: Contender) -> dict[str, Any]:
    finite = {k: v for k, v in asdict(contender).items() if not isinstance(v, float) or abs(v) < float("inf")}
    return asdict(contender) | {"error": None, "loss_per_s": None} | finite


def main(arguments: list[str]) -> None:
    """Runs the script."""
    order: dict[str, Any] = json.loads(arguments[0])
    path = pathlib.Path(arguments[1])
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    race = Race(budget=order["budget"], share=order["share"], contenders=order["contenders"])
    raced = _Raced(race, order["allow"], trains_on=order["trains_on"])
    patched: Callable[..., None] = lambda tensor, *args, **kwargs: raced.backward(tensor, *args, **kwargs)  # noqa: E731
    sys.argv = [str(path), *arguments[2:]]
    sys.path.insert(0, str(path.parent))
    with (
        mock.patch.object(tightwire, "attach", raced.attach),
        mock.patch.object(_attach, "attach", raced.attach),
        mock.patch.object(Tensor, "backward", patched),
    ):
        runpy.run_path(str(path), run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
