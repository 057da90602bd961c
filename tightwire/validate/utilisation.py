"""Bandwidth against utilisation, in the terms of the Streaming DiLoCo paper (Douillard et al., arXiv:2501.18512).

How many Gb/s between two sites does a method need, so that the devices compute 50, 80 or 90 % of the time? As there, a
site is one worker that computes a step in a given time, whatever devices it holds, and what it does besides computing
and exchanging takes no time: passes over memory and codecs run on all devices of a site at once. Models are of the
sizes that the paper takes, in float32; nothing here was measured.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tightwire import pages
from tightwire.cluster import Cluster
from tightwire.profile import Profile
from tightwire.simulate import predict

SITES = 2
LATENCY_S = 1e-4
UTILISATIONS = (0.5, 0.8, 0.9)
LEAST_GIGABITS, MOST_GIGABITS = 1e-3, 1e5
PRECISION = 1.01

PLANS = (
    "bsp/allreduce/none/wfbp",
    "bsp/allreduce/bf16/wfbp",
    "delayed:1/allreduce/bf16",
    "local:100",
    "diloco:100",
    "diloco:100/allreduce/int4+ef",
    "diloco:100/allreduce/none/streaming:8",
    "diloco:100/allreduce/int4+ef/streaming:8",
)


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model on the devices of one site.

    Attributes:
        name: by its parameters.
        parameters: how many.
        layers: that share them evenly.
        step_s: what a site needs to compute one step.
    """

    name: str
    parameters: float
    layers: int
    step_s: float

    def profile(self) -> Profile:
        """Returns its profile on a site whose devices do everything but compute in no time."""
        return Profile(
            forward_s=self.step_s / 3,
            backward_s=self.step_s * 2 / 3,
            optimizer_s=0.0,
            parameters=Profile.uniform(
                layers=self.layers,
                numel_per_layer=round(self.parameters / self.layers),
                forward_s=self.step_s / 3,
                backward_s=self.step_s * 2 / 3,
            ).parameters,
            pass_s_per_element=0.0,
            noise=0.0,
        )


MODELS = (
    Model(name="1B", parameters=1e9, layers=24, step_s=0.1),
    Model(name="10B", parameters=1e10, layers=48, step_s=0.8),
    Model(name="100B", parameters=1e11, layers=108, step_s=4.9),
)


@dataclass(frozen=True, kw_only=True)
class Need:
    """What one plan needs for one model: Gb/s between sites by utilisation; None where no bandwidth is enough."""

    model: str
    plan: str
    gigabits: tuple[float | None, ...]

    def values(self) -> dict[str, Any]:
        """Returns it for JSON."""
        needs = {
            f"{share:.0%}": gigabits for share, gigabits in zip(UTILISATIONS, self.gigabits, strict=True)
        }
        return {"model": self.model, "plan": self.plan, "gigabits_per_s": needs}


def needs(models: Sequence[Model] = MODELS, plans: Sequence[str] = PLANS) -> Iterator[Need]:
    """Yields what every plan needs for every model."""
    for model in models:
        profile = model.profile()
        for plan in plans:
            found = tuple(needed_gigabits(plan, profile, share) for share in UTILISATIONS)
            yield Need(model=model.name, plan=plan, gigabits=found)


def utilisation(plan: str, profile: Profile, gigabits: float) -> float:
    """Returns the share of time in which devices compute, with so many Gb/s of payload between sites each way."""
    found = predict(plan, profile, Cluster.uniform(SITES, gigabits * 1e9 / 8, LATENCY_S))
    return profile.compute_s / found.step_s


def needed_gigabits(plan: str, profile: Profile, share: float) -> float | None:
    """Returns the least Gb/s with which devices compute this share of the time, within a percent."""
    return least_gigabits(functools.partial(utilisation, plan, profile), share)


def least_gigabits(used: Callable[[float], float], share: float) -> float | None:
    """Returns the least Gb/s with which at least this share is used, within a percent; None where none is enough."""
    low, high = LEAST_GIGABITS, MOST_GIGABITS
    if used(high) < share:
        return None
    if used(low) >= share:
        return low
    while high / low > PRECISION:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if used(middle) >= share else (middle, high)
    return high


def plot(models: Sequence[Model] = MODELS, plans: Sequence[str] = PLANS) -> str:
    """Returns a page with utilisation against bandwidth, model by model.

    Raises:
        ModuleNotFoundError: plotly is not installed (`tightwire[report]`).
    """
    from plotly.subplots import make_subplots

    titles = [f"{model.name}, {model.step_s:g} s a step" for model in models]
    figure = make_subplots(1, len(models), subplot_titles=titles, shared_yaxes=True)
    rates = [10 ** (power / 6) for power in range(-12, 19)]
    for column, model in enumerate(models, start=1):
        profile = model.profile()
        for number, plan in enumerate(plans):
            figure.add_scatter(
                x=rates,
                y=[100 * utilisation(plan, profile, rate) for rate in rates],
                name=plan,
                mode="lines",
                line={"color": COLOURS[number % len(COLOURS)]},
                legendgroup=plan,
                showlegend=column == 1,
                row=1,
                col=column,
            )
    figure.update_xaxes(type="log", title_text="Gb/s between two sites, each way")
    figure.update_yaxes(title_text="time computing, %", range=[0, 101], col=1)
    title = "How much of the time two sites compute, by method (predicted)"
    figure.update_layout(
        template="simple_white", title=title, height=520, legend={"orientation": "h", "y": -0.25}
    )
    drawn = figure.to_html(include_plotlyjs=True, full_html=False, config={"displayModeBar": False})
    return pages.whole(title, drawn)


COLOURS = ("#8a8f98", "#59636e", "#7fb0f5", "#1f6feb", "#7a4fbf", "#b08ae0", "#e8a27c", "#d1652b")
