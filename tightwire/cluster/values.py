"""What a cluster can do, as a value and as a file."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from dataclasses import dataclass
from typing import ClassVar, Literal

from tightwire import files
from tightwire.errors import FileError

# Beyond these, a number is more likely to be in the wrong unit than true.
MAX_BANDWIDTH_BYTES_PER_S = 200e9
MAX_LATENCY_S = 10.0
MAX_WORKERS = 1_000_000
# TCP on Ethernet with MTU 1500: 1448 payload bytes in a frame of 1514.
PAYLOAD_SHARE = 1448 / 1514
# How far untuned formulas were from measured NCCL all-reduce in published comparisons: 20 to 78 %.
PRIOR_RESIDUAL = 0.2


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How long a program takes on this cluster: `alpha_s + beta_s_per_byte · sent`.

    `sent` is the payload that the busiest worker sends, which `predict_bytes` knows exactly for any codec; so
    1/β compares with the bandwidth of a line, whatever the program.

    Attributes:
        program: as in `allreduce:PROGRAM`.
        alpha_s: time of an exchange of nothing.
        beta_s_per_byte: more per payload byte that the busiest worker sends.
        cpu_s_per_byte: processor time that one worker spends on moving it, the reduction included.
        residual: root mean square of the relative errors of the fit, weighted by time.
        source: `measured`, or `prior` for the formula from latency and bandwidth.
    """

    __pydantic_config__: ClassVar = files.STRICT

    program: str
    alpha_s: float
    beta_s_per_byte: float
    cpu_s_per_byte: float = 0.0
    residual: float = 0.0
    source: Literal["measured", "prior"] = "measured"

    def __post_init__(self) -> None:
        require_range("alpha_s", self.alpha_s, 0.0, MAX_LATENCY_S * 1000)
        require_range("beta_s_per_byte", self.beta_s_per_byte, 0.0, 1.0)
        require_range("cpu_s_per_byte", self.cpu_s_per_byte, 0.0, 1.0)
        require_range("residual", self.residual, 0.0, 10.0)

    def seconds(self, sent_bytes: float) -> float:
        """Returns the time of one exchange in which the busiest worker sends `sent_bytes`."""
        return self.alpha_s + self.beta_s_per_byte * sent_bytes


@dataclass(frozen=True, kw_only=True)
class Pair:
    """What was measured between two workers.

    Attributes:
        workers: the two ranks.
        latency_s: half of a round trip of one byte.
        bandwidth_bytes_per_s: payload, one way.
        both_ways_bytes_per_s: payload in each direction while both send.
    """

    __pydantic_config__: ClassVar = files.STRICT

    workers: tuple[int, int]
    latency_s: float
    bandwidth_bytes_per_s: float
    both_ways_bytes_per_s: float

    def __post_init__(self) -> None:
        require_range("latency_s", self.latency_s, 0.0, MAX_LATENCY_S)
        require_bandwidth("bandwidth_bytes_per_s", self.bandwidth_bytes_per_s)
        require_bandwidth("both_ways_bytes_per_s", self.both_ways_bytes_per_s)


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Workers, each on a line of its own, and how long programs take among them.

    Attributes:
        workers: how many.
        bandwidth_bytes_per_s: payload that each worker's line carries in each direction at once.
        latency_s: of one small message between two workers.
        fits: what was measured, at most one per program.
        pairs: measured pairs of workers, for people to look at.
    """

    __pydantic_config__: ClassVar = files.STRICT

    workers: int
    bandwidth_bytes_per_s: float
    latency_s: float
    fits: tuple[Fit, ...] = ()
    pairs: tuple[Pair, ...] = ()
    version: Literal[1] = 1

    def __post_init__(self) -> None:
        require_range("workers", self.workers, 1, MAX_WORKERS)
        require_bandwidth("bandwidth_bytes_per_s", self.bandwidth_bytes_per_s)
        require_range("latency_s", self.latency_s, 0.0, MAX_LATENCY_S)
        names = [fit.program for fit in self.fits]
        if len(set(names)) < len(names):
            raise FileError(f"fits: {names} names a program twice; keep one fit per program.")
        for pair in self.pairs:
            if pair.workers[0] == pair.workers[1] or not all(0 <= w < self.workers for w in pair.workers):
                raise FileError(f"pairs: {pair.workers} are not two different ranks below {self.workers}.")

    @classmethod
    def uniform(cls, workers: int, bandwidth_bytes_per_s: float, latency_s: float) -> Cluster:
        """Returns a cluster of equal lines of which nothing was measured; formulas stand in.

        >>> Cluster.uniform(4, 125e6, 50e-6).workers
        4
        """
        return cls(workers=workers, bandwidth_bytes_per_s=bandwidth_bytes_per_s, latency_s=latency_s)

    @classmethod
    def read(cls, path: str | pathlib.Path) -> Cluster:
        """Reads a cluster file.

        Raises:
            FileError: unreadable, or a field that is wrong, named.
        """
        return files.read(path, cls)

    def write(self, path: str | pathlib.Path) -> None:
        """Writes the cluster as YAML."""
        files.write(path, self)

    def fit(self, program: str) -> Fit | None:
        """Returns what was measured of `program`, or None."""
        return next((fit for fit in self.fits if fit.program == program), None)

    def scaled(self, factor: float) -> Cluster:
        """Returns this cluster with `factor` times the bandwidth, measured programs sped up alike."""
        fits = (dataclasses.replace(f, beta_s_per_byte=f.beta_s_per_byte / factor) for f in self.fits)
        bandwidth = self.bandwidth_bytes_per_s * factor
        return dataclasses.replace(self, bandwidth_bytes_per_s=bandwidth, fits=tuple(fits))


def require_range(field: str, value: float, low: float, high: float) -> None:
    """Refuses a value outside `low` … `high`, or not a number.

    Raises:
        FileError: names the field, the value and the range.
    """
    if not (math.isfinite(value) and low <= value <= high):
        raise FileError(
            f"{field}: {value} is outside {low:g} … {high:g}; look at the unit in the field's name."
        )


def require_bandwidth(field: str, bytes_per_s: float) -> None:
    """Refuses bandwidths that no line has.

    Raises:
        FileError: names the field; asks back where bits were probably meant.
    """
    if not math.isfinite(bytes_per_s) or bytes_per_s <= 0:
        raise FileError(
            f"{field}: {bytes_per_s} bytes per second would never move anything; write more than 0."
        )
    if bytes_per_s > MAX_BANDWIDTH_BYTES_PER_S:
        gigabits = bytes_per_s * 8 / 1e9
        raise FileError(
            f"{field}: {bytes_per_s:g} bytes per second is {gigabits:,.0f} Gb/s for one line, more than any has; "
            f"if bits were meant, write {bytes_per_s / 8:g}."
        )
