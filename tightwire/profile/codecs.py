"""Measures what codecs cost on this machine, under whatever load it has at the time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tightwire.catalogue import parse_compression
from tightwire.compression.codec import Codec
from tightwire.profile.values import CodecCost

# What does not depend on the size is measured on a bucket of this many elements.
SMALL_NUMEL = 1024
# Gradients are cold when their turn comes, so codecs are timed on more than caches hold.
COLD_NUMEL = 2**23


def measure_codecs(
    compressions: Sequence[str],
    *,
    numel: int = COLD_NUMEL,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    samples: int = 3,
) -> tuple[CodecCost, ...]:
    """Times encoding and decoding of each codec; medians of `samples`.

    Args:
        compressions: compression answers; of each only the codec is timed, stages are passes over memory.
        numel: of a bucket; more than caches hold.
        dtype: of the gradients.
        device: where they are.
        samples: how often.

    Raises:
        PlanError: a compression that cannot be read.
    """
    codecs = dict.fromkeys(parse_compression(text)[0] for text in compressions)
    values = _normal((numel,), device).to(dtype)
    return tuple(_measure(codec, values, samples) for codec in codecs if isinstance(codec, Codec))


def measure_pass(
    *,
    numel: int = COLD_NUMEL,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    samples: int = 3,
) -> float:
    """Returns the seconds per element of one pass over memory: adding one buffer to another."""
    a, b = _normal((2, numel), device).to(dtype)
    return _median_s(lambda: a.add_(b), lambda: None, samples) / numel


def _normal(shape: tuple[int, ...], device: torch.device | str) -> Tensor:
    """Draws from a generator of its own: measuring must not change the numbers that training draws."""
    return torch.randn(shape, device=device, generator=torch.Generator(device).manual_seed(0))


def _measure(codec: Codec, values: Tensor, samples: int) -> CodecCost:
    numel = values.numel()
    encode_s, decode_s = _times(codec, values, samples)
    small = min(numel, SMALL_NUMEL)
    fixed_s = min(sum(_times(codec, values[:small], samples)), encode_s + decode_s)
    both_s = encode_s + decode_s
    share = (both_s - fixed_s) / both_s / numel if both_s > 0 else 0.0
    return CodecCost(
        compression=str(codec),
        encode_s_per_element=encode_s * share,
        decode_s_per_element=decode_s * share,
        fixed_s=fixed_s,
    )


def _times(codec: Codec, values: Tensor, samples: int) -> tuple[float, float]:
    bucket, out = values.clone(), torch.zeros_like(values)
    num_bytes = codec.wire_bytes(values.numel(), values.itemsize)
    message = torch.empty(num_bytes, dtype=torch.uint8, device=values.device)
    encode_s = _median_s(lambda: codec.encode(bucket, message), lambda: bucket.copy_(values), samples)
    decode_s = _median_s(lambda: codec.decode(message, out, add=True), lambda: None, samples)
    return encode_s, decode_s


def _median_s(work: Callable[[], object], prepare: Callable[[], object], samples: int) -> float:
    seconds = []
    for _ in range(samples + 1):  # the first one warms up
        prepare()
        _synchronise()
        begin_s = time.perf_counter()
        work()
        _synchronise()
        seconds.append(time.perf_counter() - begin_s)
    return statistics.median(seconds[1:])


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
