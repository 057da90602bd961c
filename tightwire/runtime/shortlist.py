"""Which plans a run looks at closely: ranked by what codecs cost on this machine, and of every kind the best."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Container, Iterable, Iterator, Sequence

import torch

from tightwire.answers import Sender
from tightwire.cluster import Cluster
from tightwire.plan import Plan
from tightwire.planner import Allowance, Ranking
from tightwire.planner.candidates import begins_as_it_goes_on, is_allowed, keeps_optimizer, legal
from tightwire.planner.quality import Situation, extra_steps, is_studied
from tightwire.planner.ranking import By, careful_s, mildest, rank, rank_again, rank_few
from tightwire.profile import Profile, known_costs
from tightwire.runtime.race import PRIOR_SPREAD, Contender
from tightwire.schedule import Auto
from tightwire.simulate import Prediction
from tightwire.sync import Rounds

HOST = torch.device("cpu")
# Codecs are timed on so many elements, at most so many of them, in so many rounds.
TIMED_NUMEL, MOST_TIMED, MOST_ROUNDS = 2**18, 12, 5
# Of this many plans, the best of their kinds, codecs are timed where no race asks for more.
LOOKED_AT = 3
# What is predicted whatever a search finds, and alone where there is no time for one: on a wire whose links are alike,
# the best plan is seldom much better than the best of these.
SEEDED = (
    *(
        f"bsp/allreduce/{compression}/{schedule}"
        for compression in (
            "bf16", "int8+ef", "int4+ef", "int2+ef", "powersgd:2+ef", "powersgd:4+ef", "powersgd:8+ef", "topk:0.01+ef",
        )
        for schedule in ("fusion", "fusion:4MiB")
    ),
    *(
        f"local:{steps}/allreduce/{compression}/fusion"
        for steps in (4, 8, 16, 32)
        for compression in ("none", "int8", "int4+ef", "powersgd:4+ef")
    ),
    *(f"diloco:32,outer_momentum=0.6/allreduce/{compression}/fusion" for compression in ("none", "int8")),
)  # fmt: skip
# A plan that is expected to need so many times as long as the best one does not contend.
MOST_BEHIND = 3.0


def rank_timed(
    profile: Profile,
    cluster: Cluster,
    allow: Allowance,
    by: By,
    *,
    at: torch.device = HOST,
    in_the_way: Sequence[str] = (),
    looked_at: int = LOOKED_AT,
    searches: bool = True,
) -> Ranking:
    """Ranks plans, without reasons; the codec of whatever may be taken is timed here.

    A codec that nobody timed is priced by its nearest relative or by its prior, which flatter most of them. So those of
    the plans that look best are timed, and plans are compared anew, until nothing else looks best.

    Args:
        profile: of the model.
        cluster: the wire.
        allow: which plans.
        by: what they are compared by.
        at: the device that codecs are timed on.
        in_the_way: see `contenders`.
        looked_at: of how many contenders codecs are timed, besides that of the plan that is chosen.
        searches: whether all plans are ranked; else those alone that experience suggests.

    Returns:
        The ranking; its profile holds what codecs cost where all workers of a host encode at once.
    """
    profile = dataclasses.replace(profile, codecs=())
    seeded = [plan for plan in map(legal, SEEDED) if plan is not None and is_allowed(plan, allow)]
    # Else those that experience suggests, which are compared below.
    found = rank(profile, cluster, allow, by) if searches else rank_few((), profile, cluster, allow, by)
    # What is chosen here is trained with as it is, and searches for nothing any more.
    found = dataclasses.replace(
        found, rows=tuple(row for row in found.rows if not isinstance(row.plan.schedule, Auto))
    )
    plans = [*seeded, *(row.plan for row in found.rows)]
    untimed: list[Sender] = []
    for number in range(MOST_ROUNDS):
        profile = _timing(profile, untimed, at)
        is_new = functools.partial(_sends_with, names={sender.name for sender in untimed})
        found = rank_again(
            found, _with_guesses(profile, plans), seeded, anew=is_new if number else lambda plan: True
        )
        wanted = [found.chosen.plan, *_plans_of(itertools.islice(contenders(found, in_the_way), looked_at))]
        known = {cost.compression for cost in profile.codecs}
        untimed = [sender for sender in _senders(wanted) if str(sender) not in known]
        if not untimed or len(known) + len(untimed) > MOST_TIMED:
            break
    if untimed:  # what was not timed in that many rounds is left out
        rows = tuple(row for row in found.rows if known.issuperset(map(str, _senders([row.plan]))))
        found = rank_again(dataclasses.replace(found, rows=rows), profile, anew=lambda plan: False)
    return dataclasses.replace(found, profile=profile)


def _timing(profile: Profile, senders: Sequence[Sender], at: torch.device) -> Profile:
    """Returns the profile with what some more senders cost here.

    One worker times them while the others wait; in training all of a host encode at once, as they compute.
    """
    texts = ["none", *map(str, senders)]
    costs, pass_s = known_costs(texts, numel=TIMED_NUMEL, at=at)
    new = tuple(cost.times(profile.contention) for cost in costs if cost.compression in texts)
    kept = tuple(cost for cost in profile.codecs if cost.compression not in texts)
    return dataclasses.replace(profile, codecs=(*kept, *new), pass_s_per_element=pass_s * profile.contention)


def _sends_with(plan: Plan, names: Container[str]) -> bool:
    return plan.sender.name in names


def _plans_of(field: Iterable[Contender]) -> list[Plan]:
    return [Plan.parse(contender.plan) for contender in field]


def _senders(plans: Iterable[Plan]) -> list[Sender]:
    """Returns what some plans send with, as far as that takes time: each once, in their order."""
    return list(dict.fromkeys(plan.sender for plan in plans if plan.sender.name != "none"))


def _with_guesses(profile: Profile, plans: Iterable[Plan]) -> Profile:
    """Returns the profile with a cost for what nobody timed, too, so that it is compared."""
    known = {cost.compression for cost in profile.codecs}
    guesses = [
        dataclasses.replace(profile.codec_cost(sender), compression=str(sender))
        for sender in _senders(plans)
        if str(sender) not in known
    ]
    return dataclasses.replace(profile, codecs=(*profile.codecs, *guesses))


def contenders(ranking: Ranking, in_the_way: Sequence[str]) -> Iterator[Contender]:
    """Yields plans that are worth a trial: the best of all, then of every kind, bulk-synchronous and others by turns.

    Five neighbours of one kind would tell no more than one of them, and be wrong together. Of those that are about as
    good, the mildest is the best. What a plan does to the loss must have been measured, somewhere.

    Args:
        ranking: of all plans, those among them that have a place in any race.
        in_the_way: why no schedule may be used under which the next forward begins early; nothing where it may.
    """
    careful = functools.partial(careful_s, situation=Situation.of(ranking.profile))
    rows = sorted(
        (
            row
            for row in ranking.rows
            if keeps_optimizer(row.plan)
            and begins_as_it_goes_on(row.plan)
            and is_studied(row.plan)
            and not (in_the_way and row.plan.schedule.overlaps_forward)
        ),
        key=careful,
    )
    if ranking.allow == "lossless":  # what is learned is the same, and steps differ little between kinds
        found = rows
    else:
        worth_it = [row for row in rows if careful(row) <= MOST_BEHIND * careful(rows[0])]
        bests = [
            _best_of_kinds([row for row in worth_it if row.plan.sync.is_bulk is bulk], careful)
            for bulk in (True, False)
        ]
        bests.sort(key=lambda found: careful(found[0]) if found else math.inf)
        turns = [row for turn in itertools.zip_longest(*bests) for row in turn if row is not None]
        best = mildest(worth_it, careful)
        mixed = [best, *(row for row in turns if _kind(row.plan) != _kind(best.plan))]
        firsts = {row.plan for row in mixed}
        found = [*mixed, *_best_of_kinds([row for row in worth_it if row.plan not in firsts], careful)]
    for row in found:
        extra = extra_steps(row.plan, Situation.of(ranking.profile))
        yield Contender(
            plan=str(row.plan),
            predicted_step_s=row.step_s,
            expected=careful(row) / row.step_s,
            spread=max(PRIOR_SPREAD, extra.spread),
            steps_per_round=row.plan.sync.steps_per_round,
        )


def _best_of_kinds(rows: Sequence[Prediction], careful: Callable[[Prediction], float]) -> list[Prediction]:
    """Returns one of every kind, the best of them first."""
    kinds: dict[str, list[Prediction]] = {}
    for row in rows:
        kinds.setdefault(_kind(row.plan), []).append(row)
    return sorted((mildest(of_kind, careful) for of_kind in kinds.values()), key=careful)


def _kind(plan: Plan) -> str:
    """Returns what contenders are told apart by: the codec under bsp, else the policy, methods of rounds being two."""
    final, _ = plan.sync.stretches()[-1]
    if final.name == "bsp":
        return plan.sender.name
    if isinstance(final, Rounds):
        return "rounds that an outer step closes" if final.has_outer_step else "rounds"
    return final.name


def value_of(ranking: Ranking) -> Callable[[Prediction], float]:
    """Returns what plans are compared by, the less the better: a step's time, or that of what an exact one does."""
    if ranking.by == "loss":
        return functools.partial(careful_s, situation=Situation.of(ranking.profile))
    return lambda row: row.step_s
