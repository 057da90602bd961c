"""The programs: for N ranks, one small function each. A new one is a function and a line in `PROGRAMS`.

Costs are for one buffer of M bytes over n ranks: α is the latency of a message, β the seconds per byte of a
line, γ the seconds per byte of a reduction.
"""

from __future__ import annotations

from functools import lru_cache

from tightwire.architecture.allreduce.builders.boxes import (
    balanced,
    blueconnect,
    halving_doubling,
    hierarchical,
    torus,
    uneven_hierarchical,
)
from tightwire.architecture.allreduce.builders.movements import all_gather, all_to_all, reduce_scatter
from tightwire.architecture.allreduce.builders.recipe import (
    ProgramRecipe,
    Shape,
    legal_shapes,
    nearly_square,
    prime_sides,
    print_shape,
)
from tightwire.architecture.allreduce.builders.rings import (
    allgather,
    direct,
    native,
    recursive_doubling,
    ring,
)
from tightwire.architecture.allreduce.builders.synthesis import Wiring, synthesise
from tightwire.architecture.allreduce.builders.trees import broadcast, double_tree, reduce, tree
from tightwire.architecture.allreduce.program import Program
from tightwire.errors import ProgramError

__all__ = [
    "COLLECTIVES",
    "PROGRAMS",
    "ProgramRecipe",
    "Shape",
    "balanced",
    "build",
    "legal_shapes",
    "print_shape",
    "uneven_hierarchical",
]

_MPICH = "Thakur, Rabenseifner and Gropp 2005, Optimization of collective communication in MPICH"
_TREES = "Sanders, Speck and Träff 2009, Two-tree algorithms for full bandwidth broadcast, reduction and scan"
_DIRECT = "Chan, Heimlich, Purkayastha and van de Geijn 2007, Collective communication: theory, practice, experience"
_RING = "Patarasuk and Yuan 2009, Bandwidth optimal all-reduce algorithms for clusters of workstations"


def _on_equal_lines(num_ranks: int) -> Program:
    """Makes the program for equal lines to one switch; `AllReduce` makes it for the links that it is told."""
    return synthesise(Wiring.star([1.0] * num_ranks)).program


# All-reduces, as in `allreduce:NAME`.
PROGRAMS: dict[str, ProgramRecipe] = {
    "ring": ProgramRecipe(build=ring, title="Ring all-reduce", paper=_RING),
    "recursive-doubling": ProgramRecipe(build=recursive_doubling, title="Recursive doubling", paper=_MPICH),
    "halving-doubling": ProgramRecipe(
        build=halving_doubling,
        title="Recursive halving and doubling",
        paper="Rabenseifner 2004, Optimization of collective reduction operations",
    ),
    "tree": ProgramRecipe(build=tree, title="Pipelined binary tree", paper=_TREES, tried="when named"),
    "double-tree": ProgramRecipe(
        build=double_tree,
        title="Two binary trees, half of the buffer each",
        paper=_TREES,
        tried="where links differ",
    ),
    "torus": ProgramRecipe(
        build=torus,
        title="Rows, columns, rows of a 2-D torus",
        paper="Mikami et al. 2018, Massively distributed SGD: ImageNet/ResNet-50 training in a flash, 1811.05233",
        tried="where links differ",
        default_shape=nearly_square,
    ),
    "hierarchical": ProgramRecipe(
        build=hierarchical,
        title="Inside nodes, across them, inside again",
        paper="Jia et al. 2018, Highly scalable deep learning training system with mixed-precision, 1807.11205",
        tried="where links differ",
        default_shape=nearly_square,
    ),
    "blueconnect": ProgramRecipe(
        build=blueconnect,
        title="Reduce-scatter along each dimension in turn, all-gather back",
        paper="Cho, Finkler, Kung and Hunter 2019, BlueConnect, MLSys",
        tried="when named",
        default_shape=prime_sides,
    ),
    "direct": ProgramRecipe(
        build=direct,
        title="Direct reduce-scatter and all-gather",
        paper=_DIRECT,
        tried="where links differ",
    ),
    "synthesised": ProgramRecipe(
        build=_on_equal_lines,
        title="Trees packed into the links that there are",
        paper="cf. Zhao et al. 2024, ForestColl: throughput-optimal collective communications, arXiv:2402.06787",
        tried="where links differ",
    ),
    "allgather": ProgramRecipe(
        build=allgather, title="All-gather of messages, each decoded by everyone", paper=_MPICH
    ),
    "native": ProgramRecipe(
        build=native,
        title="The backend's own all-reduce",
        paper="PyTorch torch.distributed: Gloo, NCCL or MPI",
    ),
}

# The others; `Mover` runs them.
COLLECTIVES: dict[str, ProgramRecipe] = {
    "reduce-scatter": ProgramRecipe(build=reduce_scatter, title="Reduce-scatter around a ring", paper=_RING),
    "all-gather": ProgramRecipe(build=all_gather, title="All-gather around a ring", paper=_MPICH),
    "broadcast": ProgramRecipe(build=broadcast, title="Broadcast down a pipelined binary tree", paper=_TREES),
    "reduce": ProgramRecipe(build=reduce, title="Reduction up a pipelined binary tree", paper=_TREES),
    "all-to-all": ProgramRecipe(build=all_to_all, title="All-to-all between pairs", paper=_DIRECT),
}


@lru_cache(maxsize=128)
def build(name: str, num_ranks: int, shape: Shape = ()) -> Program:
    """Returns the program `name` for `num_ranks` ranks.

    Args:
        name: in `PROGRAMS` or `COLLECTIVES`.
        num_ranks: how many.
        shape: of the box of ranks, for programs that see one; where it is empty, one that fits.

    Raises:
        ProgramError: an unknown name, no ranks, or a shape that the program or the ranks do not have.
    """
    recipe = PROGRAMS.get(name) or COLLECTIVES.get(name)
    if recipe is None:
        raise ProgramError(f"{name!r} is no known program; known: {', '.join(sorted(PROGRAMS))}.")
    if num_ranks < 1:
        raise ProgramError(f"{name} over {num_ranks} ranks: a program needs at least 1.")
    if recipe.default_shape is not None:
        return recipe.build(num_ranks, shape or recipe.default_shape(num_ranks))
    if shape:
        shaped = [other for other, known in PROGRAMS.items() if known.default_shape]
        raise ProgramError(
            f"{name} has no shape, and {print_shape(shape)} was asked for; {', '.join(shaped)} have one."
        )
    return recipe.build(num_ranks)
