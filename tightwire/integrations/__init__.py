"""Tightwire inside other trainers, for those who stay with them."""

from tightwire.integrations.ddp import DDPHook, ddp_hook

__all__ = ["DDPHook", "ddp_hook"]
