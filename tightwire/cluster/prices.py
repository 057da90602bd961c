"""What a cluster costs: its workers by the hour, and what leaves a zone by the gigabyte."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import ClassVar

from tightwire import files
from tightwire.cluster.limits import require_range
from tightwire.errors import FileError

GIGABYTE = 1e9
# More is a price of something else.
MOST_PRICE = 1e6


@dataclass(frozen=True, kw_only=True)
class Prices:
    """Prices, as somebody read them off a page on some day.

    Attributes:
        per_worker_hour: what a worker costs an hour; kinds of workers may have prices of their own.
        per_gb_across: what 10⁹ bytes cost that leave a zone: a group of the outermost level (a node, a site, a region),
            what charged links cut off in a graph, or a single worker where lines are all alike.
        currency: of both.
        source: where they were read.
        date: when, as in 2026-11-28.
    """

    __pydantic_config__: ClassVar = files.STRICT

    per_worker_hour: float = 0.0
    per_gb_across: float = 0.0
    currency: str = ""
    source: str = ""
    date: str | datetime.date = ""

    def __post_init__(self) -> None:
        require_range("prices: per_worker_hour", self.per_worker_hour, 0.0, MOST_PRICE)
        require_range("prices: per_gb_across", self.per_gb_across, 0.0, MOST_PRICE)
        if isinstance(self.date, datetime.date):  # as YAML reads a day without quotes
            object.__setattr__(self, "date", self.date.isoformat())
        elif self.date:
            try:
                datetime.date.fromisoformat(self.date)
            except ValueError:
                raise FileError(
                    f"prices: date: {self.date!r} is no day; write it as in 2026-11-28."
                ) from None

    def show(self, amount: float) -> str:
        """Prints an amount of money.

        >>> Prices(currency="USD").show(1234.5), Prices().show(0.00012)
        ('1,234 USD', '0.00012')
        """
        return f"{print_amount(amount)} {self.currency}".rstrip()

    @property
    def origin(self) -> str:
        """Where the prices come from and of which day they are, as a part of a sentence; empty: nobody told."""
        of_day = f" of {self.date}" if self.date else ""
        return f"{self.source}{of_day}" if self.source else of_day.strip()


def print_amount(amount: float) -> str:
    """Prints an amount of money without its currency.

    >>> print_amount(2234.5), print_amount(86.04)
    ('2,234', '86')
    """
    return f"{amount:,.0f}" if amount >= 1000 else f"{amount:.3g}"
