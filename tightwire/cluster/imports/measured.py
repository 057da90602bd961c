"""From measured times of all-reduces to a cluster: lines through them, how well they fit, and what that means."""

from __future__ import annotations

from collections.abc import Sequence

from tightwire.cluster.fit import Fit, Source
from tightwire.cluster.levels import Level
from tightwire.cluster.limits import MAX_LATENCY_S
from tightwire.cluster.pieces import Point, fit_lines
from tightwire.cluster.values import Cluster
from tightwire.errors import FileError

# Residuals of quiet machines stay below the first; beyond the second there is no pattern to predict by.
NOISY_RESIDUAL = 0.1
MAX_RESIDUAL = 0.5


def measured_all_reduce(
    points: Sequence[Point],
    ranks: int,
    *,
    nodes: int = 1,
    inside_bytes_per_s: float | None = None,
    notes: Sequence[str] = (),
    source: Source = "measured",
    least_residual: float = 0.0,
) -> Cluster:
    """Returns the cluster of `ranks` workers on which all-reduces took these times.

    Args:
        points: bytes of the buffer, seconds.
        ranks: how many took part.
        nodes: that share the ranks evenly, neighbours in rank together.
        inside_bytes_per_s: of each worker inside its node, where there are several; as across if not known.
        notes: what a reader must know.
        source: `prior` where the times were converted from another collective's.
        least_residual: of the fit, where its points are not all that is uncertain.

    Raises:
        FileError: times that do not grow with size, or follow no line.
    """
    if ranks < 2 or len({size for size, _ in points}) < 2:
        raise FileError(
            f"seen {ranks} ranks and {len(points)} times of {len({size for size, _ in points})} sizes of all-reduce; "
            "two ranks and two sizes are needed at least."
        )
    share = 2 * (ranks - 1) / ranks  # of the buffer that the busiest rank sends
    lines, residual = fit_lines([(size * share, seconds) for size, seconds in points])
    if not lines[-1].beta_s_per_byte:
        raise FileError("the times measured do not grow with size: measure larger buffers, up to 1 GB.")
    if residual > MAX_RESIDUAL:
        raise FileError(
            f"the times lie {residual:.0%} from any α + β · size (root mean square of the relative errors; at most "
            f"{MAX_RESIDUAL:.0%}): times of several runs are mixed, or something else used the network. Measure again."
        )
    fit = Fit.of("native", lines, max(residual, least_residual), source)
    said = [*notes, *_noise(residual)]
    bandwidth = 1 / fit.beta_s_per_byte
    latency_s = min(MAX_LATENCY_S, fit.alpha_s / (2 * (ranks - 1)))
    levels: tuple[Level, ...] = ()
    if 1 < nodes < ranks:
        inside = max(bandwidth, inside_bytes_per_s or 0.0)
        levels = (
            Level(name="node", workers=ranks // nodes, bandwidth_bytes_per_s=inside),
            Level(name="cluster", workers=ranks, bandwidth_bytes_per_s=bandwidth, latency_s=latency_s),
        )
    return Cluster(
        workers=ranks,
        bandwidth_bytes_per_s=bandwidth,
        latency_s=latency_s,
        fits=(fit,),
        levels=levels,
        notes=tuple(said),
    )


def _noise(residual: float) -> list[str]:
    if residual <= NOISY_RESIDUAL:
        return []
    return [
        f"The times lie {residual:.0%} from the lines fitted through them (root mean square): predictions from this "
        "file may be off by as much. Measure again on a quiet network, with more iterations."
    ]
