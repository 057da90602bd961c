"""Trains every script under DDP and every plan; rank 0 prints a row for each."""

from __future__ import annotations

import importlib
import json
import math
import sys
import warnings
from dataclasses import asdict

import torch
from torch import Tensor, nn

import tightwire as tw
from tightwire.bench.scripts import SCRIPTS, ScriptRow, ScriptsBench
from tightwire.bench.scripts.replicas import DDP, Replicas, Script
from tightwire.errors import AttachError, PlanError, TightwireError
from tightwire.plan import Plan
from tightwire.transport import Transport, current

# Lossless plans add in another order than DDP.
TOLERANCE = 1e-5


def main(text: str) -> None:
    """Runs the bench that is described in JSON."""
    bench = ScriptsBench(**json.loads(text))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    tw.init(deadline_s=60)
    transport = current()
    for name in bench.scripts:
        script: Script = getattr(importlib.import_module(f"tightwire.bench.scripts.{SCRIPTS[name]}"), name)
        expected = _train(script, Replicas(DDP, transport.rank, transport.size))
        for plan in bench.plans:
            row = _row(name, script, plan, expected[0], transport)
            if transport.rank == 0:
                print(json.dumps(asdict(row)), flush=True)
    tw.shutdown()


def _row(name: str, script: Script, plan: str, expected: nn.Module, transport: Transport) -> ScriptRow:
    try:
        model, loss = _train(script, Replicas(plan, transport.rank, transport.size))
    except (TightwireError, AssertionError) as error:
        refused = isinstance(error, PlanError | AttachError)
        return ScriptRow(script=name, plan=plan, verdict="refused" if refused else "wrong", why=str(error))
    apart, spread = _apart(_flat(model), _flat(expected)), _spread(_flat(model), transport)
    is_exact = _must_equal(Plan.parse(plan))
    good = math.isfinite(loss.item()) and spread == 0.0 and (not is_exact or apart <= TOLERANCE)
    verdict = ("equal" if is_exact else "trained") if good else "wrong"
    return ScriptRow(script=name, plan=plan, verdict=verdict, apart=apart, spread=spread, loss=loss.item())


def _must_equal(plan: Plan) -> bool:
    return str(plan.sync) == "bsp" and plan.architecture.agrees and plan.sender.lossless


def _train(script: Script, replicas: Replicas) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model, loss = script(replicas)
    return model, loss.detach()


def _flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def _apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def _spread(flat: Tensor, transport: Transport) -> float:
    others = transport.exchange(flat.numpy().tobytes())
    return max(_apart(torch.frombuffer(bytearray(other), dtype=flat.dtype), flat) for other in others)


if __name__ == "__main__":
    main(sys.argv[1])
