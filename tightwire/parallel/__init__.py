"""Transformers cut many ways: which layouts fit, how long an iteration takes, and which one is best. No torch."""

from tightwire.parallel.candidates import Candidate, Layouts
from tightwire.parallel.layout import Layout
from tightwire.parallel.memory import Memory, memory_of
from tightwire.parallel.network import Network, RankGroup, Tier, Tiers, network_of
from tightwire.parallel.search import parallelise
from tightwire.parallel.time import Accelerators, Iteration, TrainingCost, predict_iteration
from tightwire.parallel.transformer import SHAPES, Transformer, transformer

__all__ = [
    "SHAPES",
    "Accelerators",
    "Candidate",
    "Iteration",
    "Layout",
    "Layouts",
    "Memory",
    "Network",
    "RankGroup",
    "Tier",
    "Tiers",
    "TrainingCost",
    "Transformer",
    "memory_of",
    "network_of",
    "parallelise",
    "predict_iteration",
    "transformer",
]
