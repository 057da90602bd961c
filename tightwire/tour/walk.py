"""From the link to the plan: what a tour measured, in the order in which one thing follows from another."""

from __future__ import annotations

from collections.abc import Iterator

from tightwire.tour.tour import DDP, RACE, TourResult
from tightwire.units import print_ms, print_rate, print_size

# Below this much wire time for one of compute, a backward pass hides the exchange.
HIDDEN = 0.5


def walk(result: TourResult) -> Iterator[str]:
    """Yields sentences that lead from the measured link and model to the chosen plans and what they did."""
    facts, workers = result.facts, result.options.workers
    rate, compute_s, num_bytes = (facts[k] for k in ("bandwidth_bytes_per_s", "compute_s", "num_bytes"))
    yield f"The link: each worker sends {print_rate(rate)}, and a message takes {print_ms(facts['latency_s'])} besides."
    yield f"The model: a step computes for {print_ms(compute_s)} and leaves {print_size(num_bytes)} of gradients."
    sent = 2 * (workers - 1) / workers * num_bytes
    ratio = sent / rate / compute_s
    says = (
        "the wire sets the pace, and sending less or better is worth it"
        if ratio > 1
        else "it can hide behind the backward pass, and stock DDP is hard to beat"
        if ratio < HIDDEN
        else "a better order hides most of it"
    )
    yield (
        f"Both together: for the exact mean each of {workers} workers sends {print_size(sent)} a step, which takes "
        f"{print_ms(sent / rate)}, {ratio:.1f} times the compute: {says}."
    )
    for plan in result.plans:
        took = f"measured {print_ms(plan.step_s)} a step"
        if plan.asked == RACE:
            yield f"The race's answer, after trials of its own: {plan.plan}, {took}."
        elif plan.role != DDP:
            who = (
                f"The planner's answer, {plan.asked} plans allowed"
                if plan.asked in result.why
                else "Asked for"
            )
            yield f"{who}: {plan.plan}, predicted {print_ms(plan.predicted_step_s)}, {took}."
