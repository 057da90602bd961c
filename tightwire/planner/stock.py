"""How stock PyTorch does a part of a plan, for those who cannot run the plan itself."""

from __future__ import annotations

from tightwire.plan import Plan
from tightwire.schedule import Fusion

MEBIBYTE = 2**20
HOOKS = {
    "bf16": "DDP's bf16_compress_hook halves the bytes",
    "fp16": "DDP's fp16_compress_hook halves the bytes",
    "powersgd": "DDP's powerSGD_hook sends low-rank gradients",
}


def stock_way(plan: Plan) -> str:
    """Returns what comes nearest to a plan in stock PyTorch, as a part of a sentence.

    >>> stock_way(Plan.parse("bsp/allreduce/bf16/fusion:4MiB"))
    "DDP's bf16_compress_hook halves the bytes, and DDP(bucket_cap_mb=4) fuses as this plan does"
    """
    ways = []
    if plan.sync.name in ("local", "postlocal"):
        ways.append("PostLocalSGDOptimizer with post_localSGD_hook averages parameters every few steps")
    if plan.sender.name in HOOKS:
        ways.append(HOOKS[plan.sender.name])
    if isinstance(plan.schedule, Fusion):
        ways.append(f"DDP(bucket_cap_mb={plan.schedule.bucket_bytes / MEBIBYTE:g}) fuses as this plan does")
    elif not ways or plan.sync.is_bulk:
        ways.append("DDP with smaller or larger bucket_cap_mb gets a part of the overlap")
    return ", and ".join(ways)
