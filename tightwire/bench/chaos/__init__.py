"""A campaign of faults at random moments, each of whose ends is judged: who ended, who was named, what is left."""

from tightwire.bench.chaos.campaign import Campaign, ChaosRow, TrialOutcome, draw, run_campaign
from tightwire.bench.chaos.faults import FAULTS, ChaosFault

__all__ = ["FAULTS", "Campaign", "ChaosFault", "ChaosRow", "TrialOutcome", "draw", "run_campaign"]
