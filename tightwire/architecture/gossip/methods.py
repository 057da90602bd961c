"""The ways to gossip parameters uncompressed: what each needs of its graph."""

from __future__ import annotations

from dataclasses import dataclass

from tightwire.answers import Rate


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way.

    Attributes:
        title: what it does.
        paper: where it comes from.
        graph: its default.
        needs_static: whether all rounds must mix alike.
        needs_symmetric: whether who hears must be heard, with equal weight.
        eigenvalues_above: which bound W's must keep; a W that does not is replaced by (I + W)/2. None for any W.
        waits: whether a worker waits for its neighbours' round; if not, it needs a sync policy that does not either.
        slow: whether every worker keeps slow parameters, moved by the outer step of a sync policy that has one.
        proven: how fast it is proven to converge, or None.
    """

    title: str
    paper: str
    graph: str = "ring"
    needs_static: bool = False
    needs_symmetric: bool = False
    eigenvalues_above: float | None = None
    waits: bool = True
    slow: bool = False
    proven: Rate | None = None


METHODS: dict[str, Method] = {
    "d-psgd": Method(
        title="gradient steps on mixed parameters: x ← Wx − ηg(x)",
        paper="Lian et al. 2017, arXiv:1705.09056, Algorithm 1",
        proven=Rate(
            bound="O(1/√(nT))",
            assumes="smooth non-convex loss, bounded variance within and between workers",
            speed_up="linear: n, once T is large against n and 1/ρ, ρ being the graph's gap",
            paper="Lian et al. 2017, arXiv:1705.09056, corollary 2",
        ),
    ),
    "d2": Method(
        title="variance reduction for unlike data: x ← W(2x − x₋ − ηg + ηg₋)",
        paper="Tang et al. 2018, arXiv:1803.07068, Algorithm 1, assumption 1.3",
        needs_static=True,
        needs_symmetric=True,
        eigenvalues_above=-1 / 3,
        proven=Rate(
            bound="O(1/√(nT))",
            assumes="smooth non-convex loss, bounded variance within workers, unlike data",
            speed_up="linear: n",
            paper="Tang et al. 2018, arXiv:1803.07068, corollary 3",
        ),
    ),
    "sgp": Method(
        title="push-sum: x and a weight w by a column-stochastic matrix, gradients at x/w",
        paper="Assran et al. 2019, arXiv:1811.10792, Algorithm 1",
        graph="one-peer-exponential",
        proven=Rate(
            bound="O(1/√(nT))",
            assumes="smooth non-convex loss, bounded variance within and between workers",
            speed_up="linear: n",
            paper="Assran et al. 2019, arXiv:1811.10792, theorem 1",
        ),
    ),
    "ad-psgd": Method(
        title="asynchronous averaging with one neighbour at a time, behind computation",
        paper="Lian et al. 2018, arXiv:1710.06952, Algorithm 1",
        needs_static=True,
        needs_symmetric=True,
        waits=False,
        proven=Rate(
            bound="O(1/√T), T counting all workers' updates",
            assumes="smooth non-convex loss, bounded variance, bounded delays",
            speed_up="linear: n, for T is n times as many",
            paper="Lian et al. 2018, arXiv:1710.06952, corollary 2",
        ),
    ),
    "noloco": Method(
        title="DiLoCo whose outer step is averaged with one random peer",
        paper="Kolehmainen et al. 2025, arXiv:2506.10911",
        graph="random-matching",
        needs_symmetric=True,
        slow=True,
    ),
}
