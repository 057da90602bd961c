"""In which order: what travels together, and what moves next."""

from tightwire.schedule.fixed import Fusion, Sequential, Wfbp
from tightwire.schedule.scheduler import InOrder, Partition, Schedule, Scheduler, TensorFacts, fuse

MEMBERS = (Sequential, Wfbp, Fusion)

__all__ = [
    "MEMBERS",
    "Fusion",
    "InOrder",
    "Partition",
    "Schedule",
    "Scheduler",
    "Sequential",
    "TensorFacts",
    "Wfbp",
    "fuse",
]
