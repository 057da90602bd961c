"""Tightwire inside other trainers, for those who stay with them."""

from tightwire.integrations.ddp import DDPHook, ddp_hook
from tightwire.integrations.ddp_sizes import ddp_buckets

__all__ = ["DDPHook", "ddp_buckets", "ddp_hook"]
