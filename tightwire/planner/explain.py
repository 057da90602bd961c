"""Why this plan: sentences with numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tightwire.cluster import MAX_BANDWIDTH_BYTES_PER_S, Cluster
from tightwire.errors import PlanError
from tightwire.plan import DEFAULTS, FAMILIES, Axis, Plan, text_with
from tightwire.planner.candidates import STOCK, answers
from tightwire.planner.ranking import Ranking, least_gain, rank
from tightwire.planner.search import SAME_CLASS
from tightwire.planner.words import print_ms, print_rate, print_size
from tightwire.simulate import Prediction, fit_of, predict

# How far from the present bandwidth a flip is still looked for.
FARTHEST = 1000.0

BOUNDS = {
    "compute": "computing",
    "wire": "bytes on the wire",
    "latency": "the latency of messages, not their bytes",
    "codec": "encoding and decoding",
}


def explain(ranking: Ranking) -> Iterator[str]:
    """Yields the reasons for the choice, most important first."""
    yield _verdict(ranking)
    yield _bound(ranking.chosen)
    yield from _decisions(ranking)
    yield _flip(ranking)
    if ranking.allow == "lossless":
        yield from _lossy_offer(ranking)
    yield from _caveats(ranking)


def describe(prediction: Prediction, stock: Prediction) -> str:
    """Returns a sentence on what a plan's step is made of, and how it compares with plain all-reduce."""
    return (
        f"{prediction.plan}: {print_ms(prediction.compute_s)} of computing and {print_ms(prediction.exposed_s)} "
        f"of exposed exchange, bound by {BOUNDS[prediction.bound_by]}; {stock.step_s / prediction.step_s:.2f} "
        "times as fast as plain all-reduce."
    )


def _verdict(ranking: Ranking) -> str:
    chosen, stock = ranking.chosen, ranking.stock
    if ranking.stays:
        best = ranking.rows[0]
        gain = max(0.0, 1 - best.step_s / stock.step_s)
        noise = least_gain(ranking.profile, stock)
        return (
            f"Stay with plain all-reduce ({stock.plan}, {print_ms(stock.step_s)} a step): the fastest plan allowed, "
            f"{best.plan}, would gain {gain:.1%}, and {noise:.1%} is lost in the noise."
        )
    return (
        f"{chosen.plan} is predicted to take {print_ms(chosen.step_s)} a step ({print_ms(chosen.low_s)} to "
        f"{print_ms(chosen.high_s)}), plain all-reduce ({stock.plan}) {print_ms(stock.step_s)}: "
        f"{stock.step_s / chosen.step_s:.2f} times as fast."
    )


def _bound(chosen: Prediction) -> str:
    return (
        f"Its step is {print_ms(chosen.compute_s)} of computing and {print_ms(chosen.exposed_s)} of exposed exchange, "
        f"while each worker sends {print_size(chosen.bytes_per_step)}; it is bound by {BOUNDS[chosen.bound_by]}."
    )


def _decisions(ranking: Ranking) -> Iterator[str]:
    """Yields what each answer buys against plain all-reduce's, or against the best other answer."""
    chosen, stock = Plan.parse(ranking.chosen.plan), Plan.parse(ranking.stock.plan)
    for axis, own, plain in zip(FAMILIES, answers(chosen), answers(stock), strict=True):
        if own != plain:
            yield from _bought(ranking, chosen, axis, plain)
        else:
            yield from _passed_over(ranking, chosen, axis)


def _bought(ranking: Ranking, chosen: Plan, axis: Axis, plain: str) -> Iterator[str]:
    # Another codec may need another program: the architecture is then left to choose itself.
    free = {"architecture": DEFAULTS["architecture"]} if axis == "compression" else {}
    try:
        other = predict(text_with(chosen, **{axis: plain}, **free), ranking.profile, ranking.cluster)
    except PlanError:
        return
    saved_s = other.step_s - ranking.chosen.step_s
    sends = ""
    if print_size(other.bytes_per_step) != print_size(ranking.chosen.bytes_per_step):
        sends = f": {print_size(ranking.chosen.bytes_per_step)} a step instead of {print_size(other.bytes_per_step)}"
    own = answers(chosen)[tuple(FAMILIES).index(axis)]
    yield f"{own} instead of {plain} saves {print_ms(saved_s)}{sends}."


def _passed_over(ranking: Ranking, chosen: Plan, axis: Axis) -> Iterator[str]:
    """Yields what the best plan that differs in this answer alone would take."""
    place = tuple(FAMILIES).index(axis)
    own = answers(chosen)
    for row in ranking.rows:
        other = answers(Plan.parse(row.plan))
        if (
            other[place] != own[place]
            and other[:place] + other[place + 1 :] == own[:place] + own[place + 1 :]
        ):
            difference_s = row.step_s - ranking.chosen.step_s
            more = "more" if difference_s >= 0 else "less, too little to depart for"
            yield f"{other[place]} instead of {own[place]} would take {print_ms(abs(difference_s))} {more}."
            return


def _flip(ranking: Ranking) -> str:
    """Says at which bandwidth the choice would change."""
    here = ranking.cluster.bandwidth_bytes_per_s
    plan, faster = (_contender(ranking), False) if ranking.stays else (ranking.chosen.plan, True)
    tolerance = 1 - least_gain(ranking.profile, ranking.stock)

    def gains(cluster: Cluster) -> bool:
        stock = predict(STOCK, ranking.profile, cluster)
        return predict(plan, ranking.profile, cluster).step_s < stock.step_s * tolerance

    farthest = min(FARTHEST, 0.999 * MAX_BANDWIDTH_BYTES_PER_S / here) if faster else 1 / FARTHEST
    factor = find_flip(lambda f: gains(ranking.cluster.scaled(f)), farthest)
    if factor is None:
        who, way = ("The choice", "up") if faster else ("Plain all-reduce", "down")
        return f"{who} would stand at any bandwidth {way} to {print_rate(here * farthest)}."
    rate = print_rate(here * factor)
    if faster:
        return f"From {rate} on ({factor:.1f} times this bandwidth), plain all-reduce would be as good."
    return f"Below {rate}, {plan} would be worth it."


def _contender(ranking: Ranking) -> str:
    """Returns the plan that would win first if the wire were slower."""
    slow = ranking.cluster.scaled(1 / 30)
    predicted = ((predict(row.plan, ranking.profile, slow).step_s, row.plan) for row in ranking.rows)
    return min(predicted)[1]


def find_flip(gains: Callable[[float], bool], farthest: float) -> float | None:
    """Returns the bandwidth factor, to 1 %, from which on there is no gain; None if it is not in reach.

    Args:
        gains: whether the plan gains at a factor of the present bandwidth.
        farthest: the last factor to look at, from 1; above or below it.
    """
    low, high = sorted((1.0, farthest))
    if gains(high) or not gains(low):
        return None
    while high / low > 1.01:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if gains(middle) else (low, middle)
    return high


def _lossy_offer(ranking: Ranking) -> Iterator[str]:
    best = rank(ranking.profile, ranking.cluster, "lossy").chosen
    gain = ranking.chosen.step_s / best.step_s
    if gain < 1 + least_gain(ranking.profile, ranking.stock):
        yield f"Do not compress here: no lossy plan would be more than {SAME_CLASS:.0%} faster."
    else:
        yield (
            f"If you allow lossy plans, {best.plan} would take {print_ms(best.step_s)} a step: {gain:.2f} times as "
            "fast, at some loss of accuracy per step."
        )


def _caveats(ranking: Ranking) -> Iterator[str]:
    fit = fit_of(Plan.parse(ranking.chosen.plan), ranking.profile, ranking.cluster)
    if fit.source != "measured":
        yield f"{fit.program} was not measured on this cluster; its time is a formula's: run `tightwire probe`."
    if not ranking.profile.codecs and Plan.parse(ranking.chosen.plan).compression_text != "none":
        yield "Codecs were not measured on this machine; their time is a guess: run `tightwire profile`."
