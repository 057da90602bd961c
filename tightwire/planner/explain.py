"""Why this plan: sentences with numbers."""

from __future__ import annotations

from collections.abc import Iterator

from tightwire.answers import DEFAULTS, Axis, text_with
from tightwire.catalogue import FAMILIES
from tightwire.errors import PlanError, ProgramError
from tightwire.plan import Plan
from tightwire.planner.bounds import busiest_link, compute_floor_s, wire_floor_s
from tightwire.planner.break_even import break_even
from tightwire.planner.candidates import answers, keeps_optimizer
from tightwire.planner.confidence import chance
from tightwire.planner.deviation import deviation
from tightwire.planner.ranking import Ranking, least_gain, rank
from tightwire.planner.search import SAME_CLASS
from tightwire.simulate import Prediction, fit_of, predict
from tightwire.units import print_ms, print_rate, print_size

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
    yield from _link(ranking)
    yield from _distance(ranking)
    yield from _decisions(ranking)
    yield from _runner_up(ranking)
    yield from break_even(ranking)
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
        f"{stock.step_s / chosen.step_s:.2f} times as fast, and faster at all with a probability of "
        f"{1 - ranking.chance(stock):.0%}."
    )


def _bound(chosen: Prediction) -> str:
    return (
        f"Its step is {print_ms(chosen.compute_s)} of computing and {print_ms(chosen.exposed_s)} of exposed exchange, "
        f"while each worker sends {print_size(chosen.bytes_per_step)}; it is bound by {BOUNDS[chosen.bound_by]}."
    )


def _link(ranking: Ranking) -> Iterator[str]:
    """Yields which link is busy for longest, where they are not all alike."""
    found = busiest_link(ranking.chosen.plan, ranking.profile, ranking.cluster)
    if found is not None:
        others = f", and {found.alike - 1} more are as busy" if found.alike > 1 else ""
        rate = print_rate(found.bandwidth_bytes_per_s)
        yield f"Of the {found.of} directions of links that it uses, {found.name} ({rate}) is the busiest{others}."


def _distance(ranking: Ranking) -> Iterator[str]:
    """Yields how far the choice is from what no order of its transfers could beat."""
    plan = ranking.chosen.plan
    compute_s = compute_floor_s(plan, ranking.profile)
    wire_s = wire_floor_s(plan, ranking.profile, ranking.cluster)
    bound_s = max(compute_s, wire_s)
    if bound_s <= 0.0:
        return
    over = ranking.chosen.step_s / bound_s
    wire = f", and its bytes {print_ms(wire_s)} on the wire" if wire_s else ""
    yield (
        f"Computing alone takes {print_ms(compute_s)}{wire}: no order of the same transfers could take less than "
        f"{print_ms(bound_s)}, and this takes {over:.2f} times that."
    )


def _runner_up(ranking: Ranking) -> Iterator[str]:
    """Yields how sure the choice is, against the fastest plan that was not chosen."""
    if (rival := ranking.runner_up) is None:
        return
    sure = 1 - chance(rival, ranking.chosen, ranking.profile, ranking.cluster)
    why = ""
    if rival.step_s < ranking.chosen.step_s and ranking.stays:
        why = ", which gains too little to leave what everybody knows"
    elif rival.step_s < ranking.chosen.step_s:
        mild = keeps_optimizer(rival.plan)
        why = ", which changes more of what is learnt from" if mild else ", which asks for another optimizer"
        if deviation(rival.plan) <= deviation(ranking.chosen.plan) and mild:
            why = ", which departs further from plain PyTorch for next to nothing"
    yield (
        f"The next is {rival.plan} with {print_ms(rival.step_s)}{why}: the probability that the choice is truly the "
        f"faster one is {sure:.0%}."
    )


def _decisions(ranking: Ranking) -> Iterator[str]:
    """Yields what each answer buys against plain all-reduce's, or against the best other answer."""
    chosen, stock = ranking.chosen.plan, ranking.stock.plan
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
    except (PlanError, ProgramError):
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
        other = answers(row.plan)
        if (
            other[place] != own[place]
            and other[:place] + other[place + 1 :] == own[:place] + own[place + 1 :]
        ):
            difference_s = row.step_s - ranking.chosen.step_s
            more = "more" if difference_s >= 0 else "less, too little to depart for"
            yield f"{other[place]} instead of {own[place]} would take {print_ms(abs(difference_s))} {more}."
            return


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
    try:
        fit = fit_of(ranking.chosen.plan, ranking.profile, ranking.cluster)
    except (PlanError, ProgramError):
        return
    if fit.source != "measured":
        yield f"{fit.program} was not measured on this cluster; its time is a formula's: run `tightwire probe`."
    if not ranking.profile.codecs and ranking.chosen.plan.compression_text != "none":
        yield "Codecs were not measured on this machine; their time is a guess: run `tightwire profile`."
