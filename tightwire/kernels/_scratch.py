"""Memory that a thread keeps, so that a training step allocates nothing."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_local = threading.local()


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
