"""gTop-k: the largest elements of the workers' sum, merged pair by pair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from tightwire.averaging.sparse_doubling import SparseDoubling


@final
@dataclass(frozen=True)
class GTopK(SparseDoubling):
    """Keeps the k largest of the workers' sum: at every merge of two sums, the k largest of both are kept.

    Algorithm 3, by recursive doubling instead of a tree and a broadcast: ⌈log₂ n⌉ messages of k elements, half of
    the paper's time. What a merge drops is charged to the workers that made it, in equal shares, so that nothing
    is lost under `+ef` even where the paper's algorithm 4 forgets it, as the authors' code does
    (github.com/hclhkbu/gtopkssgd): an element that arrives counts as sent whole.

    Attributes:
        ratio: of the elements that are sent and kept, in (0, 1].
    """

    name: ClassVar[str] = "gtopk"
    title: ClassVar[str] = "global top-k, merged pair by pair"
    paper: ClassVar[str] = "Shi et al. 2019, arXiv:1901.04359"
    promise: ClassVar[str] = "Top-k's accuracy, at log n times k elements (Shi et al. 2019)."
    seen: ClassVar[str] = "Not quite: of what pairs drop only a part is kept."
    example: ClassVar[str] = "gtopk:0.01+ef"

    def _entries(self, kept: int, contributions: int) -> int:
        return kept
