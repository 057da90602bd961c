"""Runs a program on symbols: proves it right, and learns which rank holds which value when.

A *value* is how a number came about: a rank's own contribution, the sum of two values, or a value *carried*
through a codec. Equal values are equal bits on whichever ranks hold them, for addition commutes and a codec
repeats itself. So the checker also proves that all ranks end with the same bits, not only with the same sum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn, TypeVar

from tightwire.architecture.allreduce.program import Program, Transfer
from tightwire.errors import ProgramError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What a collective promises.

    Attributes:
        name: for messages.
        starts: (program, rank, chunk) → whether the rank begins with its own contribution to the chunk.
        ends: (program, rank, chunk) → the ranks whose contributions it ends with, as a bit mask; 0 for any.
        weighs: the weight that a transfer must have.
    """

    name: str
    starts: Callable[[Program, int, int], bool]
    ends: Callable[[Program, int, int], int]
    weighs: Callable[[Program, Transfer], float] = lambda program, transfer: 1.0


ALL_REDUCE = Goal(
    name="all-reduce",
    starts=lambda program, rank, chunk: True,
    ends=lambda program, rank, chunk: (1 << program.num_ranks) - 1,
)
ALL_GATHER = Goal(
    name="all-gather",
    starts=lambda program, rank, chunk: rank == chunk,
    ends=lambda program, rank, chunk: 1 << chunk,
)
REDUCE_SCATTER = Goal(
    name="reduce-scatter",
    starts=lambda program, rank, chunk: True,
    ends=lambda program, rank, chunk: (1 << program.num_ranks) - 1 if rank == chunk else 0,
)
REDUCE = Goal(
    name="reduce",
    starts=lambda program, rank, chunk: True,
    ends=lambda program, rank, chunk: (1 << program.num_ranks) - 1 if rank == 0 else 0,
)
BROADCAST = Goal(
    name="broadcast",
    starts=lambda program, rank, chunk: rank == 0,
    ends=lambda program, rank, chunk: 1,
)
# Chunk s·n + d is what rank s has for rank d.
ALL_TO_ALL = Goal(
    name="all-to-all",
    starts=lambda program, rank, chunk: rank == chunk // program.num_ranks,
    ends=lambda program, rank, chunk: (
        1 << chunk // program.num_ranks if rank == chunk % program.num_ranks else 0
    ),
)
GOALS = {goal.name: goal for goal in (ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER, REDUCE, BROADCAST, ALL_TO_ALL)}


class Values:
    """Numbers symbolic values: the same history has the same number, whoever asks."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, int, int], int] = {}
        self.masks: list[int] = []
        self._carried: list[bool] = []

    def own(self, rank: int, chunk: int) -> int:
        """Returns `rank`'s own contribution to `chunk`."""
        return self._number(("own", rank, chunk), 1 << rank)

    def sum(self, a: int, b: int) -> int:
        """Returns a + b, which is b + a."""
        return self._number(("sum", min(a, b), max(a, b)), self.masks[a] | self.masks[b])

    def carried(self, a: int) -> int:
        """Returns what a codec delivers of `a`; carrying it once more changes nothing."""
        return a if self._carried[a] else self._number(("carried", a, a), self.masks[a], carried=True)

    def is_carried(self, a: int) -> bool:
        """Says whether `a` came out of a codec, so that its message exists."""
        return self._carried[a]

    def evaluate(
        self, value: int, own: Callable[[int, int], T], add: Callable[[T, T], T], carry: Callable[[T], T]
    ) -> T:
        """Returns what a value stands for, by what ranks contribute, how two are added and what a codec makes of one.

        Args:
            value: its number.
            own: of rank and chunk.
            add: of two values.
            carry: of a value that travels as a message.
        """
        keys = list(self._numbers)
        needed, waiting = set[int](), [value]
        while waiting:
            kind, a, b = keys[number := waiting.pop()]
            if number not in needed:
                needed.add(number)
                waiting += [] if kind == "own" else [a, b]
        found: dict[int, T] = {}
        for number in sorted(needed):  # a value is numbered after those it is made of
            kind, a, b = keys[number]
            if kind == "own":
                found[number] = own(a, b)
            else:
                found[number] = add(found[a], found[b]) if kind == "sum" else carry(found[a])
        return found[value]

    def _number(self, key: tuple[str, int, int], mask: int, carried: bool = False) -> int:
        if key not in self._numbers:
            self._numbers[key] = len(self.masks)
            self.masks.append(mask)
            self._carried.append(carried)
        return self._numbers[key]


@dataclass
class ProgramTrace:
    """What a run on symbols saw; lists run parallel to `program.transfers`.

    Attributes:
        values: the symbols.
        sent: the value that the sender held; encoded for this transfer unless it was carried already.
        before: the value that the receiver held, None where it held nothing.
        after: the value that the receiver holds once the transfer is in.
        completes: whether this transfer completed the receiver's sum of the chunk.
        spread: the chunks whose sum some rank copies to another.
        encoders: value → the ranks that encode it.
        ends: of each chunk, the value that some rank ends with.
    """

    values: Values = field(default_factory=Values)
    sent: list[int] = field(default_factory=list)
    before: list[int | None] = field(default_factory=list)
    after: list[int] = field(default_factory=list)
    completes: list[bool] = field(default_factory=list)
    spread: frozenset[int] = frozenset()
    encoders: dict[int, set[int]] = field(default_factory=dict)
    ends: list[int] = field(default_factory=list)


def check(program: Program, goal: Goal | None = None) -> ProgramTrace:
    """Proves that `program` reaches `goal`, by default the one it declares, and with equal bits on all ranks.

    Returns:
        What the run on symbols saw.

    Raises:
        ProgramError: the first violation, by step, rank and chunk.
    """
    return _Machine(program, goal or (ALL_GATHER if program.gathers else GOALS[program.goal])).run()


class _Machine:
    """Every rank's chunks as symbols, moved step by step."""

    def __init__(self, program: Program, goal: Goal) -> None:
        self.program, self.goal = program, goal
        spread = () if program.gathers else (t.chunk for t in program.transfers if t.op == "copy")
        self.trace = ProgramTrace(spread=frozenset(spread))
        self.full = (1 << program.num_ranks) - 1
        self.holds: list[dict[int, int]] = [
            {
                chunk: self.trace.values.own(rank, chunk)
                for chunk in range(program.num_chunks)
                if goal.starts(program, rank, chunk)
            }
            for rank in range(program.num_ranks)
        ]

    def run(self) -> ProgramTrace:
        last_step = -1
        for step, transfers in self.program.steps():
            if step <= last_step:
                self._fail(transfers[0], "comes after a later step: transfers are ordered by step")
            last_step = step
            self._step(transfers)
        self._finish()
        return self.trace

    def _step(self, transfers: tuple[Transfer, ...]) -> None:
        written: set[tuple[int, int]] = set()
        for t in transfers:
            self._legal(t, written)
            written.add((t.dst, t.chunk))
        sent = [self._send(t) for t in transfers]
        for t, value in zip(transfers, sent, strict=True):
            self._receive(t, self.trace.values.carried(value))

    def _legal(self, t: Transfer, written: set[tuple[int, int]]) -> None:
        n = self.program.num_ranks
        if not (0 <= t.src < n and 0 <= t.dst < n and 0 <= t.chunk < self.program.num_chunks):
            self._fail(t, f"is outside the program's {n} ranks and {self.program.num_chunks} chunks")
        if t.src == t.dst:
            self._fail(t, "is sent by a rank to itself")
        if t.weight != (declared := self.goal.weighs(self.program, t)):
            self._fail(t, f"has weight {t.weight}, and {self.goal.name} declares {declared}")
        if t.chunk not in self.holds[t.src]:
            self._fail(t, "is not held by its sender")
        if (t.dst, t.chunk) in written:
            self._fail(t, "is the second write of this chunk in one step")

    def _send(self, t: Transfer) -> int:
        value = self.holds[t.src][t.chunk]
        self.trace.sent.append(value)
        self.holds[t.src][t.chunk] = self._encode(t.src, value)
        return value

    def _encode(self, rank: int, value: int) -> int:
        if not self.trace.values.is_carried(value):
            self.trace.encoders.setdefault(value, set()).add(rank)
        return self.trace.values.carried(value)

    def _receive(self, t: Transfer, value: int) -> None:
        values, held = self.trace.values, self.holds[t.dst].get(t.chunk)
        completes = False
        if t.op == "copy":
            after = self._copy(t, held, value)
        else:
            after = self._reduce(t, held, value)
            completes = values.masks[after] == self.full
            if completes and t.chunk in self.trace.spread:
                after = self._encode(t.dst, after)
        self.holds[t.dst][t.chunk] = after
        self.trace.before.append(held)
        self.trace.after.append(after)
        self.trace.completes.append(completes)

    def _copy(self, t: Transfer, held: int | None, value: int) -> int:
        needed = self.goal.ends(self.program, t.dst, t.chunk)
        if held is not None and needed and self.trace.values.masks[held] == needed:
            self._fail(t, "is copied to a rank that has it already")
        return value

    def _reduce(self, t: Transfer, held: int | None, value: int) -> int:
        if held is None:
            self._fail(t, "is added to nothing")
        masks = self.trace.values.masks
        if twice := masks[held] & masks[value]:
            self._fail(t, f"adds the contribution of {_ranks(twice)} a second time")
        return self.trace.values.sum(held, value)

    def _finish(self) -> None:
        for chunk in range(self.program.num_chunks):
            agreed: dict[int, int] = {}
            for rank in range(self.program.num_ranks):
                needed = self.goal.ends(self.program, rank, chunk)
                value = self._end(rank, chunk, needed)
                if needed and agreed.setdefault(needed, value) != value:
                    raise ProgramError(
                        f"{self._title}: rank {rank} adds chunk {chunk} in another order than others, so "
                        "their sums differ in the last bits; let one rank complete the sum and copy it."
                    )
            self.trace.ends.append(next(iter(agreed.values()), -1))

    def _end(self, rank: int, chunk: int, needed: int) -> int:
        value = self.holds[rank].get(chunk, -1)
        has = self.trace.values.masks[value] if value >= 0 else 0
        if needed and has != needed:
            missing, extra = needed & ~has, has & ~needed
            seen = (
                f"without the contribution of {_ranks(missing)}"
                if missing
                else f"with that of {_ranks(extra)}"
            )
            last = self.program.transfers[-1].step if self.program.transfers else -1
            raise ProgramError(f"{self._title}: after step {last}, rank {rank} ends chunk {chunk} {seen}.")
        return value

    @property
    def _title(self) -> str:
        return f"{self.program.name} over {self.program.num_ranks} ranks is no {self.goal.name}"

    def _fail(self, t: Transfer, seen: str) -> NoReturn:
        what = f"at step {t.step}, the {t.op} of chunk {t.chunk} from rank {t.src} to rank {t.dst}"
        raise ProgramError(f"{self._title}: {what} {seen}.")


def _ranks(mask: int) -> str:
    ranks = [str(rank) for rank in range(mask.bit_length()) if mask >> rank & 1]
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(ranks)}"
