"""Why this plan, in few sentences: the verdict, its reason, what would change it, what was not measured."""

from __future__ import annotations

from collections.abc import Iterator

from tightwire.answers import DEFAULTS, Axis, text_with
from tightwire.catalogue import FAMILIES
from tightwire.errors import PlanError, ProgramError
from tightwire.plan import Plan
from tightwire.planner.bounds import busiest_link, compute_floor_s, wire_floor_s
from tightwire.planner.break_even import break_even
from tightwire.planner.candidates import answers, keeps_optimizer
from tightwire.planner.confidence import print_chance
from tightwire.planner.deviation import deviation
from tightwire.planner.explain_devices import explain_devices
from tightwire.planner.explain_money import explain_cost
from tightwire.planner.explain_workers import explain_workers
from tightwire.planner.money import cost_per_step
from tightwire.planner.naming import short
from tightwire.planner.quality import Situation, extra_steps
from tightwire.planner.ranking import By, Ranking, least_gain, rank
from tightwire.planner.scaling import Scaling, Usage, scaling_of
from tightwire.planner.search import SAME_CLASS
from tightwire.planner.stock import stock_way
from tightwire.simulate import Prediction, fit_of, predict
from tightwire.simulate.memory import added_bytes
from tightwire.units import print_ms, print_rate, print_size

BOUNDS = {
    "compute": "computing",
    "wire": "bytes on the wire",
    "latency": "the latency of messages, not their bytes",
    "codec": "encoding and decoding",
    "copies": "copies between devices and their hosts",
    "stragglers": "waiting for the slowest worker",
}
# Below this share of a worker's work per worker, other ways to use the workers are told.
WELL_USED = 0.8
# By so much another way to use the workers must be better to be told.
WORTH_TELLING = 1.1


def explain(ranking: Ranking, *, turns: bool = True) -> Iterator[str]:
    """Yields the few sentences that everybody should read.

    Args:
        ranking: to be explained.
        turns: whether to look for what would change the choice, which takes as long as the ranking.
    """
    scaling = scaling_of(ranking) if ranking.cluster.workers > 1 else None
    yield from _verdict(ranking, scaling)
    if scaling is not None:  # what to do instead comes first where the answer is not to
        yield from _other_uses(ranking, scaling)
    yield _bound(ranking)
    yield from _loss(ranking)
    yield from explain_workers(ranking)
    yield from explain_cost(ranking, scaling)
    if turns:
        yield from break_even(ranking)
    if ranking.allow == "lossless" and ranking.cluster.workers > 1:
        yield from _lossy_offer(ranking)
    yield from _too_full(ranking)
    yield from explain_devices(ranking.profile, ranking.cluster)
    yield from _not_measured(ranking)
    yield from _unproven(ranking)


def detail(ranking: Ranking) -> Iterator[str]:
    """Yields what each answer of the plan buys, and how sure the choice is."""
    yield from _link(ranking)
    yield from _distance(ranking)
    yield from _decisions(ranking)
    yield from _runner_up(ranking)
    yield from _memory(ranking)


def describe(prediction: Prediction, stock: Prediction) -> str:
    """Returns a sentence on what a plan's step is made of, and how it compares with plain all-reduce."""
    return (
        f"{short(prediction.plan)}: {print_ms(prediction.compute_s)} of computing and {print_ms(prediction.exposed_s)} "
        f"of waiting for the exchange, bound by {BOUNDS[prediction.bound_by]}; {stock.step_s / prediction.step_s:.2f} "
        "times as fast as plain all-reduce."
    )


def _verdict(ranking: Ranking, scaling: Scaling | None) -> Iterator[str]:
    """Yields whether to train on these workers at all, by which plan, and what that is worth."""
    chosen, stock, workers = ranking.chosen, ranking.stock, ranking.cluster.workers
    if scaling is None:
        yield f"One worker exchanges nothing: a step takes {print_ms(chosen.step_s)}."
        return
    if scaling.speed_up < 1.0:
        one = (
            "one worker alone makes"
            if scaling.best_fewer.workers == 1
            else f"{scaling.best_fewer.workers} of them make"
        )
        yield (
            f"Do not train this model on these {workers} workers: {one} {_rate(ranking, scaling.best_fewer)}, "
            f"and all {workers} together, with the best plan allowed ({chosen.plan}, "
            f"{print_ms(chosen.step_s)} a step), make {_rate(ranking, scaling.chosen)}."
        )
        return
    worth = (
        f"{workers} workers do the work of {scaling.speed_up:.1f} ({scaling.efficiency:.0%} of one each): "
        f"{_rate(ranking, scaling.chosen)}."
    )
    if ranking.stays:
        yield f"Stay with plain all-reduce ({stock.plan}, {_interval(stock)}): {_why_stay(ranking)}. {worth}"
        return
    if ranking.by == "cost":
        less = 1 - cost_per_step(chosen, ranking.cluster) / cost_per_step(stock, ranking.cluster)
        yield (
            f"Train with {chosen.plan}: a step costs {less:.0%} less than by plain all-reduce ({stock.plan}), "
            f"and takes {_interval(chosen)}, instead of {print_ms(stock.step_s)}. {worth}"
        )
        return
    faster = (
        f"{stock.step_s / chosen.step_s:.2f} times as fast as plain all-reduce ({stock.plan}, "
        f"{print_ms(stock.step_s)})"
    )
    sure = print_chance(1 - ranking.chance(stock))
    if ranking.by == "loss":
        yield (
            f"Train with {chosen.plan}: it is expected to reach the loss of plain all-reduce "
            f"{ranking.gain(chosen):.2f} times as fast, and sooner at all with a probability of {sure}. A step takes "
            f"{print_ms(chosen.step_s)} ({_range(chosen)}): {faster}. {worth}"
        )
        return
    yield (
        f"Train with {chosen.plan}: {_interval(chosen)}, {faster}, and faster at all with a probability of "
        f"{sure}. {worth}"
    )


def _why_stay(ranking: Ranking) -> str:
    best, stock = ranking.rows[0], ranking.stock
    if best.plan == stock.plan:
        return f"no plan that is allowed is {'faster' if ranking.by == 'step' else 'better'}"
    if ranking.by == "loss":
        return (
            f"{short(best.plan)} would be {ranking.gain(best):.2f} times as fast to its loss, which is too little, or "
            "too little known"
        )
    gain, least = 1 - best.step_s / stock.step_s, least_gain(ranking.profile, stock)
    if gain < least:
        return f"{short(best.plan)} would save {gain:.1%}, and a difference below {least:.1%} is lost in the noise"
    if not keeps_optimizer(best.plan):
        times = stock.step_s / best.step_s
        return f"{short(best.plan)} would be {times:.2f} times as fast, but needs another optimizer"
    return (
        f"{short(best.plan)} would save {gain:.1%}, and is truly faster with a probability of only "
        f"{print_chance(1 - ranking.chance(stock) if ranking.chosen == best else ranking.chance(best))}"
    )


def _interval(found: Prediction) -> str:
    return f"{print_ms(found.step_s)} a step ({_range(found)})"


def _range(found: Prediction) -> str:
    return f"80 times in 100 between {print_ms(found.low_s)} and {print_ms(found.high_s)}"


def _rate(ranking: Ranking, usage: Usage) -> str:
    samples = ranking.profile.samples
    if samples:
        return f"{_number(usage.passes_per_s * samples)} samples a second"
    return f"{_number(usage.passes_per_s)} batches a second"


def _loss(ranking: Ranking) -> Iterator[str]:
    """Yields how many more steps the chosen plan needs, and what remains of its gain."""
    noise = ranking.profile.gradient_noise
    extra = extra_steps(ranking.chosen.plan, Situation.of(ranking.profile))
    if ranking.stays or (extra.factor == 1.0 and extra.spread == 0.0):
        return
    gain = ranking.stock.step_s / (ranking.chosen.step_s * extra.factor)
    so = "" if ranking.by == "loss" else f", so it is there {gain:.2f} times as fast"
    known = f"by {extra.source}" if extra.source else "a guess: it was not measured"
    if noise is not None:
        known += f"; for gradients whose noise is {noise:.2g} times what they estimate, as this run measured"
    if ranking.profile.steps_ahead:
        known += f"; within {ranking.profile.steps_ahead:,} steps"
    yield (
        f"To the loss of plain all-reduce it needs {extra.factor:.2f} times as many steps ({extra.low:.2f} to "
        f"{extra.high:.2f}; {known}){so}."
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _bound(ranking: Ranking) -> str:
    chosen = ranking.chosen
    return (
        f"Why: a step is {print_ms(chosen.compute_s)} of computing and {print_ms(chosen.exposed_s)} of waiting, while "
        f"each worker sends {print_size(chosen.bytes_per_step)}; it is bound by {BOUNDS[chosen.bound_by]}."
    )


def _other_uses(ranking: Ranking, scaling: Scaling) -> Iterator[str]:
    """Yields what would use the workers better, with what it costs."""
    if scaling.efficiency >= WELL_USED:
        return
    offers = []
    better = [  # what all do together must be more than one of them does alone
        u
        for u in scaling.accumulating
        if u.passes_per_s >= WORTH_TELLING * scaling.chosen.passes_per_s
        and scaling.times_alone(u) >= WORTH_TELLING
    ]
    if better:
        enough = next(
            (u for u in better if scaling.times_alone(u) >= WELL_USED * ranking.cluster.workers), better[-1]
        )
        offers.append(
            f"accumulating the gradients of {enough.passes} passes, or a batch as many times as large, makes "
            f"{_rate(ranking, enough)} ({scaling.times_alone(enough):.1f} times one worker that does so too), with "
            f"{enough.passes} times fewer updates for the same samples and a learning rate to match"
        )
    fewer = scaling.best_fewer
    if fewer.passes_per_s >= 0.9 * scaling.chosen.passes_per_s:
        is_one = fewer.workers == 1
        who = "one worker alone makes" if is_one else f"{fewer.workers} workers make"
        offers.append(
            f"{who} {_rate(ranking, fewer)}, and {'leaves' if is_one else 'leave'} "
            f"{ranking.cluster.workers - fewer.workers} free"
        )
    if offers:
        yield f"What would use them better: {'; '.join(offers)}."


def _lossy_offer(ranking: Ranking) -> Iterator[str]:
    by: By = "cost" if ranking.by == "cost" else "loss"
    best = rank(ranking.profile, ranking.cluster, "lossy", by, known=ranking.rows).chosen
    gain = ranking.chosen.step_s / best.step_s
    to_loss = gain / extra_steps(best.plan, Situation.of(ranking.profile)).factor
    if to_loss < 1 + max(SAME_CLASS, least_gain(ranking.profile, ranking.stock)):
        yield f"Do not compress here: no lossy plan is expected to reach a loss more than {SAME_CLASS:.0%} sooner."
    else:
        yield (
            f"With lossy plans allowed, {short(best.plan)} would take {print_ms(best.step_s)} a step: {gain:.2f} times "
            f"as fast, and {to_loss:.2f} times to the loss, for each step teaches less."
        )


def _not_measured(ranking: Ranking) -> Iterator[str]:
    """Yields what the numbers rest on that nobody measured."""
    profile, missing = ranking.profile, []
    if profile.compute_uncertainty:
        share = f"{profile.compute_uncertainty:.0%}"
        missing.append(
            f"compute, which comes from a data sheet and may be off by {share} (`tightwire profile`)"
        )
    if ranking.cluster.workers > 1 and _is_formula(ranking):
        way = "plain all-reduce" if ranking.stays else ranking.chosen.plan.architecture.name
        missing.append(f"the time of {way} on this wire, which is a formula's (`tightwire probe`)")
    if not profile.codecs and any(not member.lossless for member in ranking.chosen.plan.compression):
        missing.append("codecs, whose time is a guess (`tightwire profile`)")
    elif assumed := profile.costs_unmeasured(ranking.chosen.plan.sender):
        missing.append(f"{assumed} (`tightwire profile`)")
    if missing:
        yield f"Not measured: {'; '.join(missing)}."


def _is_formula(ranking: Ranking) -> bool:
    try:
        return fit_of(ranking.chosen.plan, ranking.profile, ranking.cluster).source != "measured"
    except (PlanError, ProgramError):
        return True


def _unproven(ranking: Ranking) -> Iterator[str]:
    """Yields what of a plan no device like the user's has run yet, and how PyTorch does part of it."""
    if ranking.profile.device in ("", "cpu") or ranking.stays or ranking.cluster.workers == 1:
        return
    yield (
        f"This is for {_device(ranking.profile.device)}: Tightwire's way on a GPU is shown by emulation alone so far; "
        f"run `make gpu` on yours first. With PyTorch alone, {stock_way(ranking.chosen.plan)}."
    )


def _memory(ranking: Ranking) -> Iterator[str]:
    """Yields what a worker's device must hold, as far as that is known."""
    profile, has = ranking.profile, ranking.cluster.device_memory_bytes
    needs = print_size(profile.least_memory_bytes)
    of = f" of {print_size(has)}" if has is not None else ""
    counted = "as the profile says" if profile.memory_bytes else "parameters and gradients"
    if profile.activation_bytes:
        beside = f" and about {print_size(profile.activation_bytes)} of activations at this batch"
    else:
        beside = "; activations are not counted, for nothing tells them, and grow with the batch"
    yield f"Memory: at least {needs}{of} a worker ({counted}){beside}."
    adds = added_bytes(ranking.chosen.plan, profile, ranking.cluster)
    if profile.device not in ("", "cpu") and ranking.cluster.workers > 1 and adds is not None:
        yield f"Memory: {short(ranking.chosen.plan)} adds about {print_size(adds)} on each device, buckets included."


def _too_full(ranking: Ranking) -> Iterator[str]:
    """Yields that a step's activations do not fit beside the rest, which computing some of them again mends."""
    profile, has = ranking.profile, ranking.cluster.device_memory_bytes
    if has is None or not profile.activation_bytes:
        return
    if (needs := profile.least_memory_bytes + profile.activation_bytes) > has:
        yield (
            f"Memory: {print_size(profile.least_memory_bytes)} and about {print_size(profile.activation_bytes)} of "
            f"activations are {print_size(needs)}, and a device has {print_size(has)}: take a smaller batch, or "
            "compute activations again in backward (torch.utils.checkpoint), which takes about a third more time."
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
    compute_s = compute_floor_s(plan, ranking.profile, ranking.cluster)
    wire_s = wire_floor_s(plan, ranking.profile, ranking.cluster)
    bound_s = max(compute_s, wire_s)
    if bound_s <= 0.0:
        return
    over = ranking.chosen.step_s / bound_s
    wire = f", and its bytes keep the busiest line busy for {print_ms(wire_s)}" if wire_s else ""
    yield (
        f"Computing alone takes {print_ms(compute_s)}{wire}: no order of the same transfers could take less than "
        f"{print_ms(bound_s)}, and this takes {over:.2f} times that."
    )


def _runner_up(ranking: Ranking) -> Iterator[str]:
    """Yields how sure the choice is, against the fastest plan that was not chosen."""
    if (rival := ranking.runner_up) is None:
        return
    why = ""
    if rival.step_s < ranking.chosen.step_s:
        if not keeps_optimizer(rival.plan):
            why = ", which needs another optimizer"
        elif ranking.stays:
            why = ", too little gain to leave plain all-reduce"
        elif ranking.by == "loss":
            why = ", which is expected to need more steps, or is less known"
        elif deviation(rival.plan) > deviation(ranking.chosen.plan):
            why = ", which changes training more"
        else:
            why = ", which gains next to nothing and differs from stock PyTorch in more"
    better = "the one that is sooner at the loss" if ranking.by == "loss" else "the faster one"
    yield (
        f"The next is {short(rival.plan)} with {print_ms(rival.step_s)}{why}: the probability that the choice is truly "
        f"{better} is {print_chance(1 - ranking.chance(rival))}."
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
            more = "more" if difference_s >= 0 else "less, too little to change"
            yield f"{other[place]} instead of {own[place]} would take {print_ms(abs(difference_s))} {more}."
            return


def _device(name: str) -> str:
    return "a GPU" if name == "gpu" else name
