"""Options by which a user tells of a model and of a cluster: files, known names, or round numbers."""

from __future__ import annotations

import pathlib
from typing import Annotated, get_args

import typer

from tightwire.profile.devices import DEVICES
from tightwire.profile.models import MODELS
from tightwire.profile.values import MAX_SAMPLES
from tightwire.ways import Over

ProfileOption = Annotated[
    pathlib.Path | None,
    typer.Option(
        "--profile",
        help="The model's profile, from `tightwire profile`; or --model, or --gradients and --compute.",
        show_default=False,
    ),
]
ClusterOption = Annotated[
    pathlib.Path | None,
    typer.Option(
        "--cluster",
        help="The cluster, from `tightwire probe` or `tightwire cluster`; or --workers and --bandwidth.",
        show_default=False,
    ),
]
GradientsOption = Annotated[
    str | None, typer.Option(help="The size of all gradients together: 100MB.", show_default=False)
]
ComputeOption = Annotated[
    str | None,
    typer.Option(
        help="The compute of one step without exchange: 300ms; a third of it is forward.", show_default=False
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(help=f"A known model, with --device and --batch: {', '.join(MODELS)}.", show_default=False),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        help=f"What a worker trains on: cpu, gpu, or with --model one of {', '.join(DEVICES)}. Round numbers are "
        "those of a GPU unless this says cpu.",
        show_default=False,
    ),
]
BatchOption = Annotated[
    int | None, typer.Option(help="Samples of a worker's batch.", show_default=False, min=1, max=MAX_SAMPLES)
]
LengthOption = Annotated[
    int | None, typer.Option(help="With --model: tokens of a sequence.", show_default=False)
]
DtypeOption = Annotated[
    str | None, typer.Option(help="Of gradients: float32, bfloat16, float16.", show_default=False)
]
WorkersOption = Annotated[int | None, typer.Option(help="The number of workers.", show_default=False)]
BandwidthOption = Annotated[
    str | None,
    typer.Option(help="The rate of each worker's line, each way: 1gbit, 25MB/s.", show_default=False),
]
LatencyOption = Annotated[
    str | None,
    typer.Option(help="Of a small message between two workers; 50us unless told.", show_default=False),
]
OverOption = Annotated[
    str | None,
    typer.Option(
        help=f"How messages leave a GPU, as in attach(over=): {', '.join(get_args(Over))}. auto takes NCCL.",
        show_default=False,
    ),
]
HardwareOption = Annotated[
    str | None,
    typer.Option(
        help="Known hardware and how many nodes: aws-p4d:4; see `tightwire cluster hardware`.",
        show_default=False,
    ),
]
TopologyOption = Annotated[
    str | None,
    typer.Option(
        help="As in `tightwire lab run`: nodes=2x4,inside=10gbit,across=1gbit, or sites=2x2x4,….",
        show_default=False,
    ),
]
KindsOption = Annotated[
    str | None,
    typer.Option(
        help="Workers that are not all alike, in the order of their ranks: a100:4+v100:3,speed=0.45; also line=10gbit, "
        "price, share. A known device's speed is known beside --model and --device.",
        show_default=False,
    ),
]
PriceOption = Annotated[
    float | None,
    typer.Option(help="What a worker costs an hour, in any currency.", show_default=False, min=0),
]
TrafficPriceOption = Annotated[
    float | None,
    typer.Option(
        help="What a GB costs that leaves a zone: a node or a site of levels, else a worker.",
        show_default=False,
        min=0,
    ),
]
