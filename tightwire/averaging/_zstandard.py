"""Zstandard, from wherever this Python has it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tightwire.errors import PlanError, TensorError


@dataclass(frozen=True, kw_only=True)
class Zstandard:
    """Two functions over buffers of bytes; both release the interpreter lock.

    Attributes:
        compress: returns the frame of some bytes.
        decompress: returns what a frame holds, at most so many bytes.
        failure: what `decompress` raises of bytes that are no frame.
    """

    compress: Callable[[Any], bytes]
    decompress: Callable[[Any, int], bytes]
    failure: type[Exception]

    def restore(self, frame: Any, num_bytes: int) -> bytes:
        """Returns what a frame holds.

        Raises:
            TensorError: no frame, or one that does not hold exactly `num_bytes`.
        """
        try:
            restored = self.decompress(frame, num_bytes)
        except self.failure as failure:
            raise TensorError(f"a plane of {num_bytes} bytes is no zstd frame ({failure}).") from None
        if len(restored) != num_bytes:
            raise TensorError(f"a plane of {num_bytes} bytes came as a zstd frame of {len(restored)}.")
        return restored


def zstandard(level: int) -> Zstandard:
    """Finds zstd: Python's own from 3.14 on, else the package zstandard.

    Raises:
        PlanError: neither is here.
    """
    try:
        own = importlib.import_module("compression.zstd")
    except ImportError:
        return _package(level)
    return Zstandard(
        compress=lambda data: own.compress(data, level),
        decompress=lambda frame, most: own.ZstdDecompressor().decompress(frame, most + 1),
        failure=own.ZstdError,
    )


def _package(level: int) -> Zstandard:
    try:
        package = importlib.import_module("zstandard")
    except ImportError:
        raise PlanError(
            "zstd cannot run here: Python has it from 3.14 on, and before that the package zstandard brings it. "
            "Install it on every rank: pip install 'tightwire[zstd]'."
        ) from None
    return Zstandard(
        compress=package.ZstdCompressor(level=level).compress,
        decompress=lambda frame, most: package.ZstdDecompressor().decompress(frame, max_output_size=most),
        failure=package.ZstdError,
    )
