"""Memory that a thread keeps, so that a training step allocates nothing."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

_local = threading.local()

Made = TypeVar("Made")


def per_thread(make: Callable[..., Made]) -> Callable[..., Made]:
    """Has each thread keep what `make` returns for its arguments: tables on a device, which a thread's stream fills.

    A table that all threads shared would be read by one stream while another still fills it.
    """

    @functools.wraps(make)
    def kept(*args: Any) -> Made:
        tables: dict[Any, Made] = _local.__dict__.setdefault("tables", {})
        key = (make, *map(str, args))
        if key not in tables:
            tables[key] = make(*args)
        return tables[key]

    return kept


def scratch_tensor(use: str, numel: int, dtype: Any, device: Any = "cpu") -> Tensor:
    """Returns this thread's scratch memory for one use: (numel,) of `dtype`, its content undefined.

    It grows to the largest size asked for and is kept, so that a training step allocates nothing. The same
    memory is returned for the same `use`: its owner must be done with it before asking again.
    """
    import torch

    pools: dict[Any, Tensor] = _local.__dict__.setdefault("pools", {})
    key = (use, dtype, str(device))
    pool = pools.get(key)
    if pool is None or pool.numel() < numel:
        pool = pools[key] = torch.empty(numel, dtype=dtype, device=device)
    return pool[:numel]
