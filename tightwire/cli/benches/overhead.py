"""`tightwire bench overhead`: what attaching costs where it has nothing to do."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from tightwire.cli.app import progress
from tightwire.cli.options import JsonOption
from tightwire.cli.table import print_rows, say


def overhead(
    samples: Annotated[
        int, typer.Option(help="Steps of each kind, in turns; the median counts.", min=5)
    ] = 200,
    as_json: JsonOption = False,
) -> None:
    """Time what attach costs where it has nothing to do: a world of one, and steps between two exchanges.

    A step takes about 20 ms. Plain and attached steps take turns and must end with the same parameters, to the bit.

        tightwire bench overhead

        tightwire bench overhead --samples 50 --json
    """
    from tightwire.bench import overhead as overhead_bench

    with progress(None, "plain and attached steps take turns"):
        found = overhead_bench.measure(samples)
    if as_json:
        typer.echo(json.dumps(asdict(found)))
        return
    rows = [
        (f"{plan.replace(str(overhead_bench.FAR), '∞')}, steps without exchange", "", f"{ratio - 1:+.2%}")
        for plan, ratio in found.policy_ratios.items()
    ]
    print_rows(
        ("step", "ms", "over plain"),
        [
            ("plain PyTorch", f"{found.plain_step_s * 1e3:.3f}", ""),
            ("attached, one worker", f"{found.attached_step_s * 1e3:.3f}", f"{found.ratio - 1:+.2%}"),
            *rows,
            *(
                (
                    f"comparing rates and passes in a round, {n} groups",
                    f"{s * 1e3:.3f}",
                    f"{s / overhead_bench.STEP_S:+.2%}",
                )
                for n, s in found.comparing_s.items()
            ),
        ],
        caption="Processor time of the thread that steps. Over plain: the median over pairs of steps.",
    )
    say(f"parameters after both: {'the same, to the bit' if found.identical else 'DIFFERENT'}")
    say(f"`import tightwire` adds {found.import_s * 1e3:.0f} ms to `import torch`")
