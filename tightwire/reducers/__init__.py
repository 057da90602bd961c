"""Agreeing on a mean."""

from tightwire.reducers.all_reduce import all_reducer
from tightwire.reducers.averager import Averager, is_finite
from tightwire.reducers.reducer import Reducer

__all__ = ["Averager", "Reducer", "all_reducer", "is_finite"]
