"""Compiles what a codec needs, before a training step has to wait for it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tightwire import kernels
from tightwire.compression.codec import Codec
from tightwire.compression.laws import check_before_use
from tightwire.devices import device_named
from tightwire.errors import DeviceError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

logger = logging.getLogger(__name__)
_SLOW_S = 2.0
# Enough elements for every way through a kernel's first lines.
_NUMEL = 4096
# Away from the host: Triton makes code of its own for sizes and addresses that are multiples of 16, and for those that
# are not; a hundredth of these elements, as of indices, ends at both kinds of address.
_NUMELS = (_NUMEL, 4000, 4095, 3999)
# Of the norm: sums in another order and their consequences are far below, a wrong kernel far above.
_MOST_OFF = 0.02


def compile_kernels(
    codec: Codec, dtype: torch.dtype | None = None, device: torch.device | None = None
) -> float:
    """Encodes and decodes, which compiles the kernels of a device or loads them from the cache on disk.

    Logs a sentence when compiling has taken 2 s, and goes on; it compiles once per machine. Away from the host it also
    makes sure that the kernels do what those of the host do: a compiler's fault would be a model that learns less, and
    nothing else.

    Args:
        codec: whose kernels.
        dtype: of the buckets; float32 by default.
        device: where the buckets are; the host by default.

    Returns:
        The seconds it took.

    Raises:
        DeviceError: the device's kernels are not right.
        CodecError: a codec from outside this package breaks a law.
    """
    import torch

    began_s = time.perf_counter()
    check_before_use(codec, dtype or torch.float32, device or torch.device("cpu"))
    x = torch.linspace(-1.0, 1.0, _NUMEL, dtype=dtype or torch.float32)
    is_away = device is not None and not device_named(device).is_host
    sizes = _NUMELS if is_away else (_NUMEL,)
    with _saying_so_if_slow(str(codec), device.type if device and is_away else ""):
        found = [_coded(codec, x[:numel].to(device) if device else x) for numel in sizes]
    if device is not None and is_away:
        for numel, of_device in zip(sizes, found, strict=True):
            require_right(codec, of_device.cpu(), _coded(codec, x[:numel]), device)
    return time.perf_counter() - began_s


def _coded(codec: Codec, x: Tensor) -> Tensor:
    """Returns what comes of `x` on its device, decoded and added to itself."""
    import torch

    x = x.clone()
    message = torch.empty(codec.wire_bytes(x.numel(), x.element_size()), dtype=torch.uint8, device=x.device)
    codec.encode(x, message)
    codec.decode(message, x)
    codec.decode(message, x, add=True)
    return x


def require_right(codec: Codec, found: Tensor, expected: Tensor, device: torch.device) -> None:
    """Makes sure that a device's kernels are those of the host, but for rounding.

    Raises:
        DeviceError: they are not; with the version of the compiler.
    """
    off = (found.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-30)
    if not off <= _MOST_OFF:
        raise DeviceError(
            f"the kernels of {codec} on {device.type} are off by {float(off):.0%} from those of the host, so what they "
            f"send is wrong: Triton {_triton()} miscompiles them. Install another version (this one was tried with "
            "3.7), or none: plain torch then takes its place."
        )


def _triton() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("triton")
    except PackageNotFoundError:
        return "(not installed)"


@contextmanager
def _saying_so_if_slow(codec: str, away: str) -> Iterator[None]:
    """Says that kernels are being compiled, once that takes long; to load them from disk may take as long, unsaid.

    Args:
        codec: whose kernels.
        away: the kind of a device that is not the host, whose compiler does not tell what it found on disk.
    """
    over, before = threading.Event(), kernels.compiled()

    def watch() -> None:
        while not over.wait(_SLOW_S):
            if away or kernels.compiled() > before:
                logger.warning(
                    "the kernels of %s for %s are being compiled, which can take a minute; the next start finds them "
                    "on disk, and `tightwire warm` does it for all codecs beforehand",
                    codec,
                    away or "cpu",
                )
                return

    threading.Thread(target=watch, name="tightwire watches compilers", daemon=True).start()
    try:
        yield
    finally:
        over.set()
