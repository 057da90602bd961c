"""Agreeing on a mean."""

from tightwire.reducers.averager import Averager, is_finite
from tightwire.reducers.reducer import Reducer

__all__ = ["Averager", "Reducer", "is_finite"]
