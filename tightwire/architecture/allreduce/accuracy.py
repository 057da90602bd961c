"""How far a mean is from the exact one: a codec's error, made again at every encoding on the way of a program."""

from __future__ import annotations

from functools import lru_cache

from tightwire.architecture.allreduce.builders import build
from tightwire.architecture.allreduce.part import trace_of
from tightwire.architecture.allreduce.program import Program
from tightwire.compression.codec import Codec

# Chunks that are followed, of the many alike that a program of many ranks has.
MAX_CHUNKS = 4
# Above this many ranks, programs are too large to be followed only to be compared.
MAX_FOLLOWED = 64


def error_of_mean(program: Program, codec: Codec, numel: int) -> float:
    """Returns E‖mean − exact mean‖²/‖exact mean‖² of independent gradients, with which law 14 holds a run.

    Every encoding of a value of second moment M adds ωM to the squared error, ω being the codec's own error on normal
    elements, and leaves a message of moment (1 + ω)M, or (1 − ω)M where message and leftover are orthogonal. Which
    sums are encoded, and from what they come, the program's checked trace says. Gathered messages are encoded once: ω.
    Two-sided, as by `direct`: ω(n − 1)/n + ω(1 ± ω(n − 1)/n). Round a ring partial sums are encoded n times: the error
    grows with n, and with 2ⁿ or more where ω is about 1 or beyond.

    Args:
        program: for any number of ranks.
        codec: whose messages it carries.
        numel: elements of a bucket.
    """
    if codec.lossless or program.num_ranks == 1 or numel == 0:
        return 0.0
    own = codec.normal_error(numel)
    if codec.combine == "exact" or program.gathers:
        return own  # messages are added, and never encoded again
    return _propagated(program, own, codec.orthogonal)


def error_by_name(name: str, codec: Codec, numel: int, num_ranks: int) -> float:
    """Returns `error_of_mean` of a program by its name; above `MAX_FOLLOWED` ranks, that of as many ranks at least."""
    if codec.lossless or num_ranks == 1 or numel == 0:
        return 0.0
    own = codec.normal_error(numel)
    if codec.combine == "exact" or name == "allgather":
        return own
    return _named(name, min(num_ranks, MAX_FOLLOWED), own, codec.orthogonal)


@lru_cache(maxsize=4096)
def _named(name: str, num_ranks: int, own: float, orthogonal: bool) -> float:
    return _propagated(build(name, num_ranks), own, orthogonal)


def _propagated(program: Program, own: float, orthogonal: bool) -> float:
    trace = trace_of(program)
    growth = 1 - own if orthogonal else 1 + own

    def carry(value: tuple[float, float]) -> tuple[float, float]:
        moment, error = value
        return moment * growth, error + own * moment

    chunks = range(0, program.num_chunks, max(1, program.num_chunks // MAX_CHUNKS))
    errors: list[float] = [
        trace.values.evaluate(
            trace.ends[chunk],
            lambda rank, chunk: (1.0, 0.0),
            lambda a, b: (a[0] + b[0], a[1] + b[1]),
            carry,
        )[1]
        for chunk in chunks
    ]
    return sum(errors) / len(errors) / program.num_ranks
