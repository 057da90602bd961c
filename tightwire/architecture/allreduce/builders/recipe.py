"""What a builder is: a program for any number of ranks, and where it comes from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tightwire.architecture.allreduce.program import Program
from tightwire.errors import ProgramError

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ProgramRecipe:
    """A program for any number of ranks, and where it comes from.

    Attributes:
        build: from the number of ranks; for programs with `default_shape`, and the shape.
        title: what it does.
        paper: where it is from.
        tried: where the planner considers it: on any cluster, where `links differ` (it looks at who sits with whom, or
            loads other links), or only when it is named, because on like lines it costs no less than another.
        default_shape: of programs that see the ranks as a box, the shape of a number of ranks for which none was
            asked; None for the others.
    """

    build: Callable[..., Program]
    title: str
    paper: str
    tried: Literal["anywhere", "where links differ", "when named"] = "anywhere"
    default_shape: Callable[[int], Shape] | None = None


def print_shape(shape: Shape) -> str:
    """Prints a shape as plans write it.

    >>> print_shape((2, 4))
    '2x4'
    """
    return "x".join(map(str, shape))


def legal_shapes(num_ranks: int, num_dimensions: int) -> list[Shape]:
    """Returns the shapes of so many ranks, without sides of 1 where there are others.

    >>> legal_shapes(12, 2)
    [(2, 6), (3, 4), (4, 3), (6, 2)]
    """
    if num_dimensions == 1:
        return [(num_ranks,)]
    sides = [side for side in range(2, num_ranks) if num_ranks % side == 0]
    found = [(side, *rest) for side in sides for rest in legal_shapes(num_ranks // side, num_dimensions - 1)]
    found = [shape for shape in found if min(shape) > 1]
    return found or [(1,) * (num_dimensions - 1) + (num_ranks,)]


def require_shape(name: str, num_ranks: int, shape: Shape) -> None:
    """Refuses a shape that does not hold exactly the ranks.

    Raises:
        ProgramError: names the shapes that do.
    """
    if min(shape, default=0) < 1 or math.prod(shape) != num_ranks:
        legal = ", ".join(map(print_shape, legal_shapes(num_ranks, max(2, len(shape)))))
        raise ProgramError(
            f"{name} of shape {print_shape(shape)} has {math.prod(shape)} ranks, and there are {num_ranks}; legal "
            f"for {num_ranks}: {legal}."
        )


def nearly_square(num_ranks: int) -> Shape:
    """Returns the two sides closest to each other.

    >>> nearly_square(8), nearly_square(16), nearly_square(7)
    ((2, 4), (4, 4), (1, 7))
    """
    side = next(s for s in range(math.isqrt(num_ranks), 0, -1) if num_ranks % s == 0)
    return side, num_ranks // side


def prime_sides(num_ranks: int) -> Shape:
    """Returns the prime factors, largest last.

    >>> prime_sides(12), prime_sides(7), prime_sides(1)
    ((2, 2, 3), (7,), (1,))
    """
    sides, divisor = [], 2
    while num_ranks > 1:
        if num_ranks % divisor == 0:
            sides.append(divisor)
            num_ranks //= divisor
        else:
            divisor += 1
    return tuple(sides) or (1,)
