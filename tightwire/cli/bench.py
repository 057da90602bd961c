"""`tightwire bench`: measurements beside the stock alternative and the physical bound, in one run."""

from __future__ import annotations

from tightwire.cli.app import App
from tightwire.cli.benches import BENCHES

app = App(
    no_args_is_help=True,
    help="""Measure beside the stock alternative and the physical bound, in one run.

    tightwire bench step --workers 4 --rate 1gbit

    tightwire bench kernels --codecs "int8 topk:0.01" """,
)
for _bench in BENCHES:
    app.command()(_bench)
