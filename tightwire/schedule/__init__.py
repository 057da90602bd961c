"""In which order: what travels together, and what moves next."""

from tightwire.schedule.auto import Auto
from tightwire.schedule.dear import DeAR
from tightwire.schedule.fixed import Fusion, Sequential, Wfbp
from tightwire.schedule.merging import AscWfbp, MgWfbp
from tightwire.schedule.priority import P3, ByteScheduler, Pace, TicTac
from tightwire.schedule.scheduler import (
    Agenda,
    BucketFacts,
    InOrder,
    Partition,
    Piece,
    Schedule,
    Scheduler,
    TensorFacts,
    Wire,
    fuse,
)
from tightwire.schedule.streaming import Streaming

MEMBERS = (Sequential, Wfbp, Fusion, MgWfbp, AscWfbp, P3, TicTac, ByteScheduler, Pace, DeAR, Auto, Streaming)

__all__ = [
    "MEMBERS",
    "P3",
    "Agenda",
    "AscWfbp",
    "Auto",
    "BucketFacts",
    "ByteScheduler",
    "DeAR",
    "Fusion",
    "InOrder",
    "MgWfbp",
    "Pace",
    "Partition",
    "Piece",
    "Schedule",
    "Scheduler",
    "Sequential",
    "Streaming",
    "TensorFacts",
    "TicTac",
    "Wfbp",
    "Wire",
    "fuse",
]
