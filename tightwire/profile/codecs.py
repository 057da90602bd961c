"""Measures what codecs and averaging methods cost on this machine, under whatever load it has at the time."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tightwire.averaging import AveragingMethod
from tightwire.buckets import plan_layout
from tightwire.catalogue import parse_compression
from tightwire.compression.codec import Codec
from tightwire.devices import device_named
from tightwire.profile.cost import CodecCost
from tightwire.transport import Transport, run_threads

# What does not depend on the size is measured on a bucket of this many elements.
SMALL_NUMEL = 1024
# Gradients are cold when their turn comes, so codecs are timed on more than caches hold.
COLD_NUMEL = 2**23
# Methods talk while they compress: two threads stand for workers, and their matrix is of this many elements at most.
METHOD_NUMEL = 2**18
METHOD_WORKERS = 2

Clock = Callable[[], float]


def measure_codecs(
    compressions: Sequence[str],
    *,
    numel: int = COLD_NUMEL,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    samples: int = 3,
    clock: Clock = time.perf_counter,
    on_sender: Callable[[str], None] = lambda text: None,
) -> tuple[CodecCost, ...]:
    """Times encoding and decoding of each codec, and a whole run of each averaging method; medians of `samples`.

    Args:
        compressions: compression answers; of each only the sender is timed, stages are passes over memory.
        numel: of a bucket; more than caches hold.
        dtype: of the gradients.
        device: where they are.
        samples: how often.
        clock: tells seconds: of the wall, which counts what else the machine does, or of the thread.
        on_sender: is told each sender when its turn comes.

    Raises:
        PlanError: a compression that cannot be read.
    """
    senders = dict.fromkeys(parse_compression(text)[0] for text in compressions)
    values = _normal((numel,), device).to(dtype)
    costs = list[CodecCost]()
    for sender in senders:
        on_sender(str(sender))
        if isinstance(sender, Codec):
            costs.append(_measure(sender, values, samples, clock))
        elif isinstance(sender, AveragingMethod):
            costs.append(_measure_method(sender, values[: min(numel, METHOD_NUMEL)], samples, clock))
    return tuple(costs)


def measure_pass(
    *,
    numel: int = COLD_NUMEL,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    samples: int = 3,
    clock: Clock = time.perf_counter,
) -> float:
    """Returns the seconds per element of one pass over memory: adding one buffer to another."""
    a, b = _normal((2, numel), device).to(dtype)
    return _median_s(lambda: a.add_(b), lambda: None, samples, a.device, clock) / numel


def _normal(shape: tuple[int, ...], device: torch.device | str) -> Tensor:
    """Draws from a generator of its own: measuring must not change the numbers that training draws."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)


def _measure(codec: Codec, values: Tensor, samples: int, clock: Clock) -> CodecCost:
    numel = values.numel()
    encode_s, decode_s = _times(codec, values, samples, clock)
    small = min(numel, SMALL_NUMEL)
    fixed_s = min(sum(_times(codec, values[:small], samples, clock)), encode_s + decode_s)
    both_s = encode_s + decode_s
    share = (both_s - fixed_s) / both_s / numel if both_s > 0 else 0.0
    return CodecCost(
        compression=str(codec),
        encode_s_per_element=encode_s * share,
        decode_s_per_element=decode_s * share,
        fixed_s=fixed_s,
    )


def _measure_method(method: AveragingMethod, values: Tensor, samples: int, clock: Clock) -> CodecCost:
    """Times runs of a method among threads; what they wait for each other counts, and its bytes take no time."""
    long_s, short_s = (
        min(run_threads(METHOD_WORKERS, lambda t, x=x: _run_s(method, x, t, samples, clock)))  # type: ignore[misc]
        for x in (values, values[:SMALL_NUMEL])
    )
    return CodecCost(
        compression=str(method),
        encode_s_per_element=max(0.0, long_s - short_s) / values.numel(),
        decode_s_per_element=0.0,
        fixed_s=min(short_s, long_s),
    )


def _run_s(
    method: AveragingMethod, values: Tensor, transport: Transport, samples: int, clock: Clock
) -> float:
    side = math.isqrt(values.numel())
    square = values[: side * side].view(side, side).cpu()
    averager = method.build(transport, plan_layout({"matrix": square}, [[0]])[0], tag=0)
    bucket, mean = square.flatten(), torch.empty(side * side, dtype=square.dtype)
    return _median_s(
        lambda: averager.run(bucket, mean, seed=0),
        lambda: bucket.copy_(square.flatten()),
        samples,
        bucket.device,
        clock,
    )


def _times(codec: Codec, values: Tensor, samples: int, clock: Clock) -> tuple[float, float]:
    bucket, out, at = values.clone(), torch.zeros_like(values), values.device
    num_bytes = codec.wire_bytes(values.numel(), values.itemsize)
    message = torch.empty(num_bytes, dtype=torch.uint8, device=values.device)
    encode_s = _median_s(
        lambda: codec.encode(bucket, message), lambda: bucket.copy_(values), samples, at, clock
    )
    decode_s = _median_s(lambda: codec.decode(message, out, add=True), lambda: None, samples, at, clock)
    return encode_s, decode_s


def _median_s(
    work: Callable[[], object],
    prepare: Callable[[], object],
    samples: int,
    at: torch.device,
    clock: Clock,
) -> float:
    device = device_named(at)
    seconds = []
    for _ in range(samples + 1):  # the first one warms up
        prepare()
        device.drain(at)
        begin_s = clock()
        work()
        device.drain(at)
        seconds.append(clock() - begin_s)
    return statistics.median(seconds[1:])
