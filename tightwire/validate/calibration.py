"""What is known before a step is predicted: wire and codecs, measured on the lab's hosts, all of them at once.

Run as `python -m tightwire.validate.calibration PLAN…` on every host; rank 0 prints what was found.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence

PROBE_BUDGET_S = 12.0
MARK = "calibrated "


def calibrate(plans: Sequence[str]) -> None:
    """Measures, and prints a marked line of JSON on rank 0. Every rank."""
    import torch

    import tightwire.transport as transport
    from tightwire.plan import Plan
    from tightwire.probe import probe
    from tightwire.profile import measure_codecs, measure_pass

    torch.set_num_threads(1)
    here = transport.init()
    cluster = probe(here, budget_s=PROBE_BUDGET_S)
    here.barrier()
    codecs = measure_codecs(sorted({Plan.parse(plan).compression_text for plan in plans}))
    pass_s = measure_pass()
    if here.rank == 0:
        found = {
            "cluster": dataclasses.asdict(cluster),
            "codecs": [dataclasses.asdict(cost) for cost in codecs],
            "pass_s_per_element": pass_s,
        }
        print(MARK + json.dumps(found), flush=True)
    here.barrier()


if __name__ == "__main__":
    calibrate(sys.argv[1:])
