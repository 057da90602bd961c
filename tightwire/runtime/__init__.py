"""Training under a plan: what `attach` returns, and all that carries it out."""

from tightwire.runtime.report import Report
from tightwire.runtime.run import Run

__all__ = ["Report", "Run"]
