"""A rank's profile from its trace.

A step ends where its optimizer ends: the last of several in a row; or a `ProfilerStep#` where no optimizer is in the
trace. Its backward begins with the autograd engine's first function of the last pass and ends with its last: passes
before that one, as of accumulated gradients, count as forward, since only the last one's gradients travel. Steps that
alternate, as of two optimizers with a backward each, count as one.

On a device, kernels run after the host that launched them. A kernel belongs to the part of the step in which the host
launched it, by its correlation, and times are the kernels' own; a gradient is ready when the last kernel launched
before `AccumulateGrad` ended has ended. Without correlations the n-th kernel is taken for the n-th operation's.
"""

from __future__ import annotations

import bisect
import itertools
import math
import pathlib
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tightwire.errors import FileError
from tightwire.profile.devices import SOME_GPU
from tightwire.profile.traces.events import Event, Trace, item_bytes, read
from tightwire.profile.values import ParameterProfile, Profile

FUNCTION = "autograd::engine::evaluate_function"
GRADIENT = "torch::autograd::AccumulateGrad"
# Steps that differ in turn are one iteration of at most so many optimizers.
MOST_TURNS = 6

Shape = tuple[int, ...]
Gradient = tuple[Shape, int, float]  # shape, bytes of an element, when it was ready


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step, in seconds from where the step before ended."""

    backward_start_s: float
    backward_end_s: float
    end_s: float
    gradients: tuple[Gradient, ...]

    @property
    def signature(self) -> tuple[tuple[Shape, int], ...]:
        """What tells kinds of steps apart."""
        return tuple((shape, size) for shape, size, _ in self.gradients)


@dataclass(frozen=True, slots=True)
class TraceWork:
    """Something a device or the host did: when the host asked for it, and when it was done."""

    asked_s: float
    start_s: float
    end_s: float


def profile_of_trace(path: str | pathlib.Path) -> Profile:
    """Returns the profile of one rank's trace of at least three steps; the first one is left out.

    Where a device did the work, what buckets and codecs take of it is that of some GPU: a trace does not tell.

    Raises:
        FileError: unreadable, too few steps, no shapes, or steps of different layers.
    """
    trace = read(path)
    steps = _in_turns(list(_steps(trace)))[1:]
    if len(steps) < 2:
        raise FileError(
            f"{path} holds {len(steps) + 1} whole steps, and three are needed: profile a few more, optimizer included "
            "(or call the profiler's step())."
        )
    kinds = Counter(step.signature for step in steps)
    if not steps[0].gradients or len(kinds) > 1:
        counts = ", ".join(str(len(step.gradients)) for step in steps[:8])
        raise FileError(
            f"{path}: the steps do not produce the same gradients ({counts} of them): layers are missing. Profile with "
            "record_shapes=True, and steps that train the whole model."
        )
    found = _profile(steps)
    if not any(event.is_on_device for event in trace.events):
        return found
    return SOME_GPU.priced(replace(found, device=SOME_GPU.name))


def _profile(steps: Sequence[Step]) -> Profile:
    backward_s = statistics.median(step.backward_end_s - step.backward_start_s for step in steps)
    wholes_s = [step.end_s for step in steps]
    parameters = []
    for number, (shape, itemsize, _) in enumerate(steps[0].gradients):
        ready_s = statistics.median(step.gradients[number][2] - step.backward_start_s for step in steps)
        parameters.append(
            ParameterProfile(
                name=f"gradient{number}",
                numel=math.prod(shape),
                itemsize=itemsize,
                ready_s=min(backward_s, max(0.0, ready_s)),
                shape=shape,
            )
        )
    typical_s = statistics.median(wholes_s)
    return Profile(
        forward_s=max(0.0, statistics.median(step.backward_start_s for step in steps)),
        backward_s=backward_s,
        optimizer_s=max(0.0, statistics.median(step.end_s - step.backward_end_s for step in steps)),
        parameters=tuple(sorted(parameters, key=lambda p: p.ready_s)),
        noise=min(10.0, statistics.stdev(wholes_s) / typical_s) if typical_s > 0 else 0.0,
    )


def _in_turns(steps: list[Step]) -> list[Step]:
    """Joins steps that alternate into one each: those before the last of a turn count as its forward."""
    signatures = [step.signature for step in steps]
    for turn in range(1, MOST_TURNS + 1):
        whole = signatures[turn:]  # what begins with the trace may not be whole
        if len(whole) >= 2 * turn and whole[turn:] == whole[:-turn]:
            return [_joined(steps[i : i + turn]) for i in range(0, len(steps) - turn + 1, turn)]
    return steps


def _joined(turn: Sequence[Step]) -> Step:
    before_s = sum(step.end_s for step in turn[:-1])
    last = turn[-1]
    start_s = before_s + last.backward_start_s
    earlier = [(shape, size, start_s) for step in turn[:-1] for shape, size, _ in step.gradients]
    own = [(shape, size, before_s + ready_s) for shape, size, ready_s in last.gradients]
    return Step(
        backward_start_s=start_s,
        backward_end_s=before_s + last.backward_end_s,
        end_s=before_s + last.end_s,
        gradients=(*earlier, *own),
    )


def _steps(trace: Trace) -> Iterator[Step]:
    """Yields steps by their ends on the host; the first one begins where the trace does."""
    host = [event for event in trace.events if not event.is_on_device and "gpu" not in event.category]
    ends = list(_ends(host))
    functions = [event for event in host if event.name.startswith(FUNCTION)]
    gradients = [event for event in host if event.name == GRADIENT]
    work = _work_on_device(trace, host)
    begun_s, done_s = -math.inf, None
    for end_s in ends:
        mine = _between(functions, begun_s, end_s)
        if not mine:
            continue
        passes = _passes(mine, _between(host, begun_s, end_s))
        ready = [
            (shape, _itemsize(event, trace.path), event.end_s)
            for event in _between(gradients, begun_s, end_s)
            if (shape := _shape(event)) is not None
        ]
        asked = [w for w in work if begun_s <= w.asked_s < end_s]
        step = _on_device(asked, passes, ready) if asked else _on_host(passes, ready, end_s)
        if done_s is None:
            done_s = min([passes[0][0].start_s, *(w.start_s for w in asked)])
        yield replace(
            step,
            backward_start_s=step.backward_start_s - done_s,
            backward_end_s=step.backward_end_s - done_s,
            end_s=step.end_s - done_s,
            gradients=tuple((shape, size, ready_s - done_s) for shape, size, ready_s in step.gradients),
        )
        begun_s, done_s = end_s, step.end_s


def _ends(host: Sequence[Event]) -> Iterator[float]:
    """Yields where steps end: with the last optimizer before the next backward, else with the profiler's own steps."""
    marks = [event for event in host if event.name.startswith("Optimizer.step")]
    if not marks:
        yield from sorted(event.end_s for event in host if event.name.startswith("ProfilerStep#"))
        return
    functions = [event.start_s for event in host if event.name.startswith(FUNCTION)]
    for mark, after in itertools.pairwise([*marks, None]):
        if mark is None:
            continue
        upto_s = after.start_s if after is not None else math.inf
        if after is None or bisect.bisect(functions, mark.end_s) < bisect.bisect(functions, upto_s):
            yield mark.end_s


def _passes(functions: Sequence[Event], host: Sequence[Event]) -> list[list[Event]]:
    """Parts the autograd functions of a step where other operations run between them: one backward pass each."""
    passes: list[list[Event]] = [[functions[0]]]
    busy_until_s = functions[0].end_s
    others = [
        event.start_s for event in host if event.category == "cpu_op" and not event.name.startswith(FUNCTION)
    ]
    for function in functions[1:]:
        between = bisect.bisect_left(others, function.start_s) - bisect.bisect_left(others, busy_until_s)
        if function.start_s > busy_until_s and between > 0:
            passes.append([])
        passes[-1].append(function)
        busy_until_s = max(busy_until_s, function.end_s)
    return passes


def _on_host(passes: Sequence[Sequence[Event]], ready: Sequence[Gradient], end_s: float) -> Step:
    start_s, last_s = passes[-1][0].start_s, max(event.end_s for event in passes[-1])
    return Step(
        backward_start_s=start_s,
        backward_end_s=last_s,
        end_s=max(end_s, last_s),
        gradients=_travelling(ready, passes),
    )


def _on_device(
    asked: Sequence[TraceWork], passes: Sequence[Sequence[Event]], ready: Sequence[Gradient]
) -> Step:
    """Returns a step by the times of what the device did; the host's tell who asked for it."""
    start_s, last_s = passes[-1][0].start_s, max(event.end_s for event in passes[-1])
    backward = [work for work in asked if start_s <= work.asked_s < last_s]
    forward_end_s = max((work.end_s for work in asked if work.asked_s < start_s), default=-math.inf)
    begins_s = min((work.start_s for work in backward), default=max(forward_end_s, start_s))
    ends_s = max((work.end_s for work in backward), default=begins_s)
    done = list(itertools.accumulate((work.end_s for work in asked), max))
    times = [work.asked_s for work in asked]

    def done_by(host_s: float) -> float:
        count = bisect.bisect_right(times, host_s)
        return min(ends_s, max(begins_s, done[count - 1] if count else begins_s))

    travelling = _travelling(ready, passes)
    return Step(
        backward_start_s=begins_s,
        backward_end_s=ends_s,
        end_s=max(work.end_s for work in asked),
        gradients=tuple((shape, size, done_by(ready_s)) for shape, size, ready_s in travelling),
    )


def _travelling(ready: Sequence[Gradient], passes: Sequence[Sequence[Event]]) -> tuple[Gradient, ...]:
    """Returns the gradients of the last pass; and first those that only passes before it produced."""
    starts = [functions[0].start_s for functions in passes]
    by_pass: list[list[Gradient]] = [[] for _ in passes]
    for gradient in ready:
        by_pass[max(0, bisect.bisect(starts, gradient[2]) - 1)].append(gradient)
    *earlier, last = by_pass
    missing: Counter[tuple[Shape, int]] = Counter()
    for gradients in earlier:
        missing |= Counter((shape, size) for shape, size, _ in gradients)
    missing -= Counter((shape, size) for shape, size, _ in last)
    return (*((shape, size, starts[-1]) for shape, size in missing.elements()), *last)


def _work_on_device(trace: Trace, host: Sequence[Event]) -> list[TraceWork]:
    """Returns what devices computed, in the order in which the host asked for it; exchanges are left out."""
    kernels = [event for event in trace.events if event.is_on_device and not event.is_exchange]
    launches = {
        event.args["correlation"]: event.start_s
        for event in host
        if event.category.endswith(("_runtime", "_driver")) and isinstance(event.args.get("correlation"), int)
    }
    known = [k for k in kernels if k.args.get("correlation") in launches]
    if known:
        work = [TraceWork(launches[k.args["correlation"]], k.start_s, k.end_s) for k in known]
        return sorted(work, key=lambda w: (w.asked_s, w.start_s))
    operations = _leaves(host)
    if not kernels or not operations:
        return []
    times = [operations[i * len(operations) // len(kernels)].start_s for i in range(len(kernels))]
    return [TraceWork(asked_s, k.start_s, k.end_s) for asked_s, k in zip(times, kernels, strict=True)]


def _leaves(host: Sequence[Event]) -> list[Event]:
    """Returns the operations that hold no other on their thread."""
    operations = [e for e in host if e.category == "cpu_op" or e.name.startswith("Optimizer.step")]
    following: dict[tuple[str, str], Event] = {}
    leaves = []
    for event in reversed(operations):
        after = following.get(event.thread)
        if after is None or after.start_s >= event.end_s:
            leaves.append(event)
        following[event.thread] = event
    return leaves[::-1]


def _between(events: Sequence[Event], from_s: float, before_s: float) -> Sequence[Event]:
    """Returns the events that begin from one time on, before another; they are sorted by their beginnings."""
    first = bisect.bisect_left(events, from_s, key=lambda event: event.start_s)
    return events[first : bisect.bisect_left(events, before_s, key=lambda event: event.start_s)]


def _shape(event: Event) -> Shape | None:
    dims = event.args.get("Input Dims")
    if not isinstance(dims, list) or not dims or not isinstance(dims[0], list):
        return None
    if not all(isinstance(side, int) and 0 <= side < 10**12 for side in dims[0]):
        return None
    return tuple(dims[0])


def _itemsize(event: Event, path: str) -> int:
    types = event.args.get("Input type")
    if isinstance(types, list) and types and isinstance(types[0], str) and types[0]:
        return item_bytes(types[0], path)
    return 4
