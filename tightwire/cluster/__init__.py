"""What a cluster can do: measured facts about the wire, levels or graphs of links, and where they come from."""

from tightwire.cluster.adding import Adding
from tightwire.cluster.fit import PRIOR_RESIDUAL, Fit
from tightwire.cluster.graph import Link, LinkGraph
from tightwire.cluster.levels import Level
from tightwire.cluster.limits import MAX_BANDWIDTH_BYTES_PER_S, require_bandwidth, require_range
from tightwire.cluster.prices import Prices
from tightwire.cluster.values import PAYLOAD_SHARE, Cluster, Pair
from tightwire.cluster.workers import WorkerKind

__all__ = [
    "MAX_BANDWIDTH_BYTES_PER_S",
    "PAYLOAD_SHARE",
    "PRIOR_RESIDUAL",
    "Adding",
    "Cluster",
    "Fit",
    "Level",
    "Link",
    "LinkGraph",
    "Pair",
    "Prices",
    "WorkerKind",
    "require_bandwidth",
    "require_range",
]
