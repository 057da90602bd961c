"""Predictions held to measurements: closed forms, published ones, and this machine's lab."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tightwire.validate import megatron, nccl, programs, seven_methods
from tightwire.validate.table import Point, Table

TABLES: Mapping[str, Callable[[], Table]] = {
    "programs": programs.table,
    "nccl-sizes": nccl.sizes_table,
    "nccl-scaling": nccl.scaling_table,
    "megatron": megatron.table,
    "seven-methods": seven_methods.table,
}

__all__ = ["TABLES", "Point", "Table"]
