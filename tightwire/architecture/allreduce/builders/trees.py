"""All-reduces, broadcasts and reductions along binary trees, through which the pieces of a chunk flow in a row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tightwire.architecture.allreduce.program import Program, Transfer

# The parent of each rank, -1 for the root's.
Parents = Sequence[int]


def heap(n: int) -> Parents:
    """Returns the balanced binary tree in which rank r's children are 2r+1 and 2r+2."""
    return [(rank + 1) // 2 - 1 for rank in range(n)]


def in_order(n: int) -> Parents:
    """Returns a binary tree with the odd ranks as leaves and rank 0, which has one child, as root.

    Ranks whose lowest set bit is 2ᵇ stand b levels above the leaves.
    """
    parents = [-1]
    for rank in range(1, n):
        low = rank & -rank
        above = (rank ^ low) | low << 1
        parents.append(above if above < n else rank ^ low)
    return parents


def twin(n: int) -> Parents:
    """Returns `in_order` with the ranks mirrored, or shifted by one where n is odd: the even ones are leaves now."""
    place = [
        (n - 1 - rank) if n % 2 == 0 else (rank + 1) % n for rank in range(n)
    ]  # of each rank of the first
    parents = [-1] * n
    for rank, parent in enumerate(in_order(n)):
        parents[place[rank]] = -1 if parent < 0 else place[parent]
    return parents


def all_reduce_along(parents: Parents, chunk: int) -> list[Transfer]:
    """Returns the way up a tree and down again for one chunk; a rank talks with one child per step."""
    rising = list(up(parents, chunk, 0))
    return [*rising, *down(parents, chunk, end(rising))]


def tree(n: int) -> Program:
    """Adds up a binary tree and copies down again, pieces in a row: 2log₂n·α + 3Mβ.

    An inner rank receives two contributions and one sum, and sends one and two, so that its line carries 3M each
    way when both directions flow together; 2Mβ each for the way up and the way down when they do not.
    """
    return _flowing("tree", n, 1, all_reduce_along(heap(n), 0))


def double_tree(n: int) -> Program:
    """Sends each half of the buffer through a tree of its own: 2log₂n·α + 2Mβ at full duplex.

    A rank that is inner in one tree is a leaf in the other, so that all lines are equally busy; the roots have one
    child only.
    """
    transfers = []
    for chunk, parents in enumerate((in_order(n), twin(n))):
        transfers += all_reduce_along(parents, chunk)
    return _flowing("double-tree", n, 2, transfers)


def broadcast(n: int) -> Program:
    """Copies rank 0's buffer down a binary tree, pieces in a row: log₂n·α + 2Mβ."""
    return _flowing("broadcast", n, 1, list(down(heap(n), 0, 0)), goal="broadcast")


def reduce(n: int) -> Program:
    """Adds up a binary tree to rank 0, pieces in a row: log₂n·α + 2Mβ + 2Mγ."""
    return _flowing("reduce", n, 1, list(up(heap(n), 0, 0)), goal="reduce")


def _flowing(name: str, n: int, chunks: int, transfers: list[Transfer], goal: str = "all-reduce") -> Program:
    by_step = sorted(transfers, key=lambda t: t.step)
    return Program(name, n, chunks, tuple(by_step), flows=True, goal=goal)


def up(parents: Parents, chunk: int, first_step: int) -> Iterator[Transfer]:
    """Yields the way up: a rank sends as soon as its children have, one child of a parent per step."""
    children = _children(parents)
    ready: dict[int, int] = {}

    def when(rank: int) -> int:
        """Returns the first step in which a rank's sum is complete."""
        if rank not in ready:
            free = first_step
            for child in sorted(children[rank], key=when):
                step = max(when(child), free)
                arrivals[child], free = step, step + 1
            ready[rank] = free
        return ready[rank]

    arrivals: dict[int, int] = {}
    when(parents.index(-1) if -1 in parents else 0)
    for child, step in arrivals.items():
        yield Transfer(step, child, parents[child], chunk, "reduce")


def down(parents: Parents, chunk: int, first_step: int) -> Iterator[Transfer]:
    """Yields the way down: a rank that has the sum sends it to one child per step, the deepest subtree first."""
    children = _children(parents)
    has = {parents.index(-1): first_step}
    for rank in _from_the_root(children, parents.index(-1)):
        for i, child in enumerate(children[rank]):
            step = has[rank] + i
            has[child] = step + 1
            yield Transfer(step, rank, child, chunk, "copy")


def _from_the_root(children: Sequence[Sequence[int]], root: int) -> Iterator[int]:
    queue = [root]
    for rank in queue:
        queue += children[rank]
        yield rank


def _children(parents: Parents) -> list[list[int]]:
    """Returns each rank's children: the deepest subtree first, equal ones from the next rank on.

    So of several trees with other roots no two have the same child at the same turn.
    """
    children: list[list[int]] = [[] for _ in parents]
    for rank, parent in enumerate(parents):
        if parent >= 0:
            children[parent].append(rank)

    def height(rank: int) -> int:
        return 1 + max(map(height, children[rank]), default=0)

    for parent, group in enumerate(children):
        group.sort(key=lambda child: (-height(child), (child - parent) % len(parents)))
    return children


def end(transfers: Sequence[Transfer]) -> int:
    """Returns the step after the last."""
    return 1 + max((t.step for t in transfers), default=-1)
