"""The size of the small message by which ranks agree on a round: one definition for the runtime and the predictor."""

from __future__ import annotations

# Who takes part, with what weight, who leaves for good.
WHO_FIELDS = 3
# What must be equal on all that train: passes that were skipped, and 24 bits of a digest of all hyper-parameters. Each
# is below DIGIT, so that the sums over 2,000 ranks of it and of its square are exact in float32.
CHECKED = 5
DIGIT = 64


def roll_fields(own: int) -> int:
    """Returns how many float32 the message has.

    Args:
        own: of the round itself, such as one per parameter.
    """
    return WHO_FIELDS + 2 * CHECKED + own
