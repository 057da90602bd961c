"""The simulator: what a plan would cost, in virtual time and with the runtime's own schedulers. No torch."""

from tightwire.simulate.carrier import Carrier, carrier, prior, sent_bytes
from tightwire.simulate.cost import BucketCost, Costs, fit_of
from tightwire.simulate.events import Clock, Work
from tightwire.simulate.pace import slowest_of
from tightwire.simulate.predict import predict
from tightwire.simulate.prediction import Bound, Prediction, Span
from tightwire.simulate.shape import Shape, shape_of
from tightwire.simulate.step import Channel, Move, Steps, Timeline

__all__ = [
    "Bound",
    "BucketCost",
    "Carrier",
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
    "carrier",
    "fit_of",
    "predict",
    "prior",
    "sent_bytes",
    "shape_of",
    "slowest_of",
]
