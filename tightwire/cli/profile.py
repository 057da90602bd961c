"""`tightwire profile`: measure what a training script's step costs."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Annotated

import typer

from tightwire import files
from tightwire.cli.app import App, progress
from tightwire.cli.options import JsonOption
from tightwire.cli.table import say, say_json
from tightwire.errors import FileError
from tightwire.planner import candidates
from tightwire.profile import Profile
from tightwire.profile.devices import DEVICES, derive, device
from tightwire.profile.models import MODELS, model_shape
from tightwire.profile.traces import profile_of_trace
from tightwire.units import print_ms, print_size

app = App()

# By so much the steps of a quiet machine do not differ.
MOST_NOISE = 0.1
NOISY = " Such a spread is another program's at work: what is predicted from this will be as far off. Profile again."


@app.command(context_settings={"allow_interspersed_args": False})
def profile(
    script: Annotated[
        list[str] | None, typer.Argument(help="A training script and its arguments.", show_default=False)
    ] = None,
    out: Annotated[pathlib.Path, typer.Option(help="Profile file to write.")] = pathlib.Path("profile.yaml"),
    steps: Annotated[int, typer.Option(help="Training steps to measure.", min=1)] = 5,
    codecs: Annotated[bool, typer.Option(help="Time codecs on this machine too.")] = True,
    model: Annotated[
        str | None,
        typer.Option(help=f"Derive that of a known model instead: {', '.join(MODELS)}.", show_default=False),
    ] = None,
    device_name: Annotated[
        str | None, typer.Option("--device", help=f"With --model: {', '.join(DEVICES)}.", show_default=False)
    ] = None,
    batch: Annotated[int, typer.Option(help="With --model: samples per worker and step.", min=1)] = 32,
    trace: Annotated[
        pathlib.Path | None, typer.Option(help="Read a PyTorch profiler trace instead.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run a script for a few training steps, and measure forward, backward, gradients and codecs.

    The script needs no change; it is stopped after the steps. Give it the machine as it will be in training.

        tightwire profile train.py --batch-size 32

        tightwire profile --out resnet.yaml --steps 10 train.py

    Or derive the profile of a well-known model on a device that you do not have:

        tightwire profile --model bert-base --device a100 --batch 32

    Or read a trace that torch.profiler wrote, with record_shapes=True, of three steps or more:

        tightwire profile --trace rank0.json
    """
    files.require_writable(out)
    if trace is not None:
        if model is not None or device_name is not None or script:
            raise FileError("--trace FILE says it all; leave out --model, --device and the script.")
        found = profile_of_trace(trace)
    elif model is not None:
        found = _derived(model, device_name, batch, script)
    elif device_name is not None:
        raise FileError(
            f"--device {device_name} is of a known model, and a script is measured where it runs: write --model, or "
            "leave --device out."
        )
    else:
        found = _measured(script, steps, codecs)
    found.write(out)
    if as_json:
        say_json(dataclasses.asdict(found))
    else:
        say(_describe(found, out))


def _derived(model: str, device_name: str | None, batch: int, script: list[str] | None) -> Profile:
    if device_name is None or script:
        raise FileError(
            f"--model {model} is derived for a device, without a script: write --device and no script."
        )
    return derive(model_shape(model), device(device_name), batch)


def _measured(script: list[str] | None, steps: int, codecs: bool) -> Profile:
    import torch

    from tightwire.profile import measure_codecs, measure_pass
    from tightwire.profile.beside import with_device
    from tightwire.profile.script import profile_script

    if not script:
        raise FileError("there is nothing to profile: write a training script, or --model and --device.")
    path = pathlib.Path(script[0])
    if not path.is_file():
        raise FileError(f"{path} is no file; write the path of a training script.")
    found = profile_script(path, script[1:], steps=steps)
    at = torch.device(found.device or "cpu")
    found = with_device(found, at)
    if not codecs:
        return found
    senders = sorted({str(plan.compression[0]) for plan in candidates(found.num_bytes, "lossy")})
    with progress(len(senders), "timing codecs") as tell:
        costs = measure_codecs(senders, device=at, on_sender=lambda text: tell(text, 1))
        pass_s = measure_pass(device=at)
    return dataclasses.replace(found, codecs=costs, pass_s_per_element=pass_s)


def _describe(found: Profile, out: pathlib.Path) -> str:
    return (
        f"{len(found.parameters)} parameters, {print_size(found.num_bytes)} of gradients. A step: forward "
        f"{print_ms(found.forward_s)}, backward {print_ms(found.backward_s)}, the rest {print_ms(found.optimizer_s)}, "
        f"spread {found.noise:.1%}; {len(found.codecs)} codecs timed. Written to {out}."
        + (NOISY if found.noise > MOST_NOISE else "")
    )
