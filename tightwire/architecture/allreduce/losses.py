"""Who made a loss: the one rule by which second-hop losses are charged, so that law 1 holds.

A rank that encodes a sum loses part of what others contributed. That part goes into its own leftover, as many times as
the mean lacks it: mean == average over ranks of (input − leftover).
"""

from __future__ import annotations


def share_of_loss(*, makers: int, divided_by: int = 1) -> float:
    """Returns by what a loss is multiplied in the leftover of each rank that made it.

    Args:
        makers: ranks that encode equal values and so lose the same; each is charged its share.
        divided_by: what the values had been divided by when they were encoded: n for a mean of n workers, because a
            mean that lacks x lacks n · x of the sum of the inputs.

    >>> share_of_loss(makers=2), share_of_loss(makers=1, divided_by=8)
    (0.5, 8.0)
    """
    return divided_by / makers
