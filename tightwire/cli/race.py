"""`tightwire race`: the planner's best few plans, tried on a training script itself."""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Annotated, Any

import typer

from tightwire.cli.app import App
from tightwire.cli.options import HostsOption, JsonOption, RateOption, shaped_rate
from tightwire.cli.table import print_rows, say, say_json
from tightwire.errors import LabError
from tightwire.lab import Lab, OutputLine, Topology
from tightwire.planner.candidates import ALLOWANCES
from tightwire.units import print_ms

app = App()


@app.command(context_settings={"allow_interspersed_args": False})
def race(
    script: Annotated[
        list[str],
        typer.Argument(help="A training script that attaches, and its arguments.", show_default=False),
    ],
    workers: HostsOption = 4,
    rate: RateOption = "200mbit",
    budget: Annotated[
        str, typer.Option(help="How long training is to take: 40min, 2h or '5000 steps'.")
    ] = "10min",
    share: Annotated[float, typer.Option(help="Share of the budget that the race may cost.")] = 0.02,
    contenders: Annotated[int, typer.Option(help="How many plans are tried at most.", min=1)] = 6,
    allow: Annotated[str, typer.Option(help="What plans may change: lossless, lossy or stale.")] = "stale",
    train_on: Annotated[
        bool, typer.Option("--train-on", help="Let the script train on under the winner; else it is ended.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Try the planner's best few plans on a script of yours, on an emulated slow network.

    The script needs no change, whatever plan it names; the loss is what it calls backward() on. All plans begin from
    the same state, and are judged by how much the loss falls per second. In training itself: tw.attach(model,
    optimizer, "race:40min", allow="stale"), and run.report_loss(loss) in every step.

        tightwire race --rate 100mbit --budget 5min examples/train.py

        tightwire race --allow lossy --budget "5000 steps" train.py --batch 32
    """
    from tightwire.runtime.race import Race

    if allow not in ALLOWANCES:
        raise LabError(f"--allow {allow} is no allowance; known: {', '.join(ALLOWANCES)}.")
    Race(budget=budget, share=share, contenders=contenders)  # refuses what cannot be
    if not pathlib.Path(script[0]).is_file():
        raise LabError(f"{script[0]} is no file; write the path of a training script.")
    order = {
        "budget": budget, "share": share, "contenders": contenders, "allow": allow, "trains_on": train_on,
    }  # fmt: skip
    found = _run(script, order, Topology(workers=workers, rate_bytes_per_s=shaped_rate(rate)))
    if as_json:
        say_json(found)
        return
    rows = [_cells(contender) for contender in found["contenders"]]
    head = ["plan", "step, predicted", "step", "loss", "loss/s", "seconds", "remark"]
    print_rows(head, rows, caption=" ".join(found["why"]))
    say("", f"{found['winner']} is the best; the trials of the others took {found['cost_s']:.1f} s.")


def _run(script: list[str], order: dict[str, Any], topology: Topology) -> dict[str, Any]:
    """Returns what rank 0 told of the race; everything else that workers print is shown on standard error.

    Raises:
        LabError: the script failed, or ended before the race was over.
    """
    found: list[dict[str, Any]] = []

    def hear(line: OutputLine) -> None:
        if line.rank == 0 and line.text.startswith('{"race"'):
            found.append(json.loads(line.text)["race"])
        else:
            typer.echo(f"[{line.rank}] {line.text}", err=True)

    with Lab(topology) as lab:
        say(f"lab: {lab.describe()}", err=True)
        command = [sys.executable, "-m", "tightwire.study.raced", json.dumps(order), *script]
        ended = lab.run(command, on_line=hear)
    if not found:
        raise LabError(
            f"{script[0]} ended before the race was over: {ended.describe()} Let it train for longer, or give the race "
            "less of a budget."
        )
    return found[0]


def _cells(contender: dict[str, Any]) -> list[str]:
    step_s, loss, per_s = contender["step_s"], contender["loss"], contender["loss_per_s"]
    return [
        contender["plan"],
        print_ms(contender["predicted_step_s"]),
        "–" if step_s is None else print_ms(step_s),
        "–" if loss is None else f"{loss:.4f}",
        "–" if per_s is None else f"{per_s:.4f}",
        f"{contender['seconds']:.1f}",
        contender["note"],
    ]
