"""All validations by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tightwire.validate import (
    ddp,
    diloco,
    fsdp,
    hooks,
    lab,
    megatron,
    nccl,
    programs,
    seven_methods,
    transformers,
)
from tightwire.validate.table import Table

TABLES: Mapping[str, Callable[[], Table]] = {
    "programs": programs.table,
    "nccl-sizes": nccl.sizes_table,
    "nccl-all-sizes": nccl.all_sizes_table,
    "nccl-scaling": nccl.scaling_table,
    "megatron": megatron.table,
    "megatron-more": megatron.more_table,
    "transformers": transformers.table,
    "fsdp": fsdp.table,
    "ddp": ddp.table,
    "ddp-hooks": hooks.table,
    "diloco": diloco.table,
    "seven-methods": seven_methods.table,
    "seven-methods-more": seven_methods.more_table,
    "lab": lab.table,
}
