"""What a cluster can do: measured facts about the wire, graphs of links, and where both come from."""

from tightwire.cluster.values import (
    MAX_BANDWIDTH_BYTES_PER_S,
    PAYLOAD_SHARE,
    PRIOR_RESIDUAL,
    Cluster,
    Fit,
    Pair,
    require_bandwidth,
    require_range,
)

__all__ = [
    "MAX_BANDWIDTH_BYTES_PER_S",
    "PAYLOAD_SHARE",
    "PRIOR_RESIDUAL",
    "Cluster",
    "Fit",
    "Pair",
    "require_bandwidth",
    "require_range",
]
