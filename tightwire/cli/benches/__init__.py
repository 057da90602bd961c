"""`tightwire bench NAME`: one module per bench, and a line in `BENCHES`."""

from __future__ import annotations

from tightwire.cli.benches.chaos import chaos
from tightwire.cli.benches.collectives import collectives
from tightwire.cli.benches.goodput import goodput
from tightwire.cli.benches.gpu import gpu
from tightwire.cli.benches.kernels import kernels
from tightwire.cli.benches.overhead import overhead
from tightwire.cli.benches.planner import planner
from tightwire.cli.benches.scripts import scripts
from tightwire.cli.benches.server import server
from tightwire.cli.benches.soak import soak
from tightwire.cli.benches.step import step
from tightwire.cli.benches.sync import sync

BENCHES = (step, collectives, kernels, server, sync, scripts, overhead, planner, chaos, soak, goodput, gpu)
