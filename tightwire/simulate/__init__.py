"""The simulator: what a plan would cost, in virtual time and with the runtime's own schedulers. No torch."""

from tightwire.simulate.cost import BucketCost, Costs, prior, program_of
from tightwire.simulate.events import Clock, Work
from tightwire.simulate.predict import predict, slowest_of
from tightwire.simulate.prediction import Bound, Prediction, Span
from tightwire.simulate.shape import Shape, shape_of
from tightwire.simulate.step import Channel, Move, Steps, Timeline
from tightwire.simulate.traffic import sent_bytes

__all__ = [
    "Bound",
    "BucketCost",
    "Channel",
    "Clock",
    "Costs",
    "Move",
    "Prediction",
    "Shape",
    "Span",
    "Steps",
    "Timeline",
    "Work",
    "predict",
    "prior",
    "program_of",
    "sent_bytes",
    "shape_of",
    "slowest_of",
]
