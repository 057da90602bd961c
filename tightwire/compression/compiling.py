"""Compiles what a codec needs, before a training step has to wait for it."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from tightwire.compression.codec import Codec

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)
_SLOW_S = 2.0
# Enough elements for every way through a kernel's first lines.
_NUMEL = 4096


def compile_kernels(
    codec: Codec, dtype: torch.dtype | None = None, device: torch.device | None = None
) -> float:
    """Encodes and decodes once, which compiles the kernels of a device or loads them from the cache on disk.

    Logs a warning when that takes over 2 s, as it does once per machine for some codecs.

    Args:
        codec: whose kernels.
        dtype: of the buckets; float32 by default.
        device: where the buckets are; the host by default.

    Returns:
        The seconds it took.
    """
    import torch

    began_s = time.perf_counter()
    x = torch.ones(_NUMEL, dtype=dtype or torch.float32, device=device)
    message = torch.empty(codec.wire_bytes(x.numel(), x.element_size()), dtype=torch.uint8, device=device)
    codec.encode(x, message)
    codec.decode(message, x)
    codec.decode(message, x, add=True)
    took_s = time.perf_counter() - began_s
    if took_s > _SLOW_S:
        logger.warning(
            "compiled the kernels of %s in %.1f s; the next start finds them on disk, and `tightwire warm` does it for "
            "all codecs beforehand",
            codec,
            took_s,
        )
    return took_s
