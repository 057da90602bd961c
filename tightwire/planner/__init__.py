"""The planner: candidates, predicted, expected_delay and explained. No torch."""

from tightwire.planner.advice import recommend
from tightwire.planner.candidates import STOCK, Allowance, allowance_of, candidates, is_lossless
from tightwire.planner.deviation import deviation
from tightwire.planner.explain import describe
from tightwire.planner.quality import ExtraSteps, extra_steps
from tightwire.planner.ranking import Ranking
from tightwire.planner.sweep import SweepRow, sweep
from tightwire.simulate import predict

__all__ = [
    "STOCK",
    "Allowance",
    "ExtraSteps",
    "Ranking",
    "SweepRow",
    "allowance_of",
    "candidates",
    "describe",
    "deviation",
    "extra_steps",
    "is_lossless",
    "predict",
    "recommend",
    "sweep",
]
