"""Training under a plan: what `attach` returns, and all that carries it out."""

from tightwire.runtime.race import Contender, Race
from tightwire.runtime.report import Report
from tightwire.runtime.run import Run

__all__ = ["Contender", "Race", "Report", "Run"]
