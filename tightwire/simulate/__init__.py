"""The simulator: what a plan would cost, in virtual time and with the runtime's own schedulers. No torch."""

from tightwire.simulate.collective import Collective, collective_of, prior, sent_bytes
from tightwire.simulate.cost import BucketCost, Costs, fit_of
from tightwire.simulate.counts import ProgramCounts, counts_of
from tightwire.simulate.events import Computation, VirtualClock
from tightwire.simulate.interval import COVERAGE, SIMULATION_ERROR
from tightwire.simulate.predict import predict
from tightwire.simulate.prediction import Bound, PredictedSegment, Prediction
from tightwire.simulate.step import PieceTransfer, StepSimulation, Timeline
from tightwire.simulate.stragglers import slowest_delay

__all__ = [
    "COVERAGE",
    "SIMULATION_ERROR",
    "Bound",
    "BucketCost",
    "Collective",
    "Computation",
    "Costs",
    "PieceTransfer",
    "PredictedSegment",
    "Prediction",
    "ProgramCounts",
    "StepSimulation",
    "Timeline",
    "VirtualClock",
    "collective_of",
    "counts_of",
    "fit_of",
    "predict",
    "prior",
    "sent_bytes",
    "slowest_delay",
]
