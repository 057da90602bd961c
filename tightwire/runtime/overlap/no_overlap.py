"""What stands where passes wait for their means, so that nothing is under way while the next forward runs."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from tightwire.architecture.round import Round
from tightwire.runtime.gradients import Gradients, PassListener
from tightwire.runtime.overlap.touch import TouchListener

Begin = Callable[[], Round]
# Prepares to add up over ranks which parameters took part; what it returns does, on any thread, and blocks.
CountUsers = Callable[[Tensor], Callable[[], Tensor]]


class NoOverlap:
    """Passes wait for their means.

    Attributes:
        gradients: ends its passes here.
    """

    def __init__(
        self,
        make: Callable[[PassListener], Gradients],
        begin: Begin,
        count_users: CountUsers,
        habits: TouchListener | None,
        collect: Callable[[Callable[[], None]], None] = lambda collect: collect(),
    ) -> None:
        self._begin, self._count_users, self._habits = begin, count_users, habits
        self._collect = collect
        self.gradients = make(self)

    def before_pass(self) -> None:  # noqa: D102
        if self._habits is not None:
            self._habits.release()

    def begin(self) -> Round:  # noqa: D102
        return self._begin()

    def before_ready(self, bucket: int) -> None:  # noqa: D102
        pass

    def end(self, used: Tensor) -> None:  # noqa: D102
        count = self._count_users(used)
        self._collect(lambda: self.gradients.collect(lambda: count().tolist()))
        if self._habits is not None:
            self._habits.hold(self.gradients.averaged())

    @property
    def landed(self) -> int:
        """Buckets of a round under way that were stepped with: none."""
        return 0

    is_stepped = False
    options = ()

    def take_exposed_s(self) -> float:
        """Returns 0: what a pass waits is the pass's to count."""
        return 0.0

    def wait(self) -> None:
        """Returns at once."""

    def deliver(self) -> None:
        """Returns at once."""

    def before_step(self) -> bool:
        """Returns False: the step is made now."""
        self.before_pass()
        return False

    def after_step(self) -> None:
        """Holds nothing."""

    def land_everything(self) -> None:
        """Has nothing under way."""
        self.before_pass()

    def close(self) -> None:
        """Takes the hooks out."""
        self.before_pass()
        self.gradients.remove()
