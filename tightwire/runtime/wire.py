"""A watch over the wire: from the run's own exchanges, whether it carries more or less than it did, and for good."""

from __future__ import annotations

import json
import pathlib
from dataclasses import dataclass

from tightwire.cluster import Cluster
from tightwire.plan import Plan
from tightwire.profile import Profile
from tightwire.runtime.trainee import Trainee
from tightwire.simulate.exchange import SimulatedExchange

# Steps between looks, each of which is a meeting; and from the first sign of a change to the look that believes it.
LOOK_STEPS, AGAIN_STEPS = 8, 3
# A look is at the fastest of so many rounds, for waiting and other work only add; the first under a plan connects.
ROUNDS = 3
# The line is faster where a round is so many times as fast as its bytes would allow at the bandwidth that is believed;
# that needs no guess of what else a round holds.
BEYOND = 1.25
# It is slower where rounds take so many times as long, and more of it than so many times the bytes' own time; provided
# that the bytes have this share of a round, or that it takes very much longer: else there is no telling. What is beside
# the wire may take so many times as long without a change of it: codecs and messages wait where processors are busy.
GROWN, BAND, SHARE, MUCH, BUSY = 1.3, 1.4, 0.1, 20.0, 2.5
# A change back, after one, needs as many looks more that say so: who went back and forth is believed less.
LOOKS, MOST_TURNS = 2, 6
# One look does not say more than that.
MOST = 20.0
# How far a prediction may be off, before the bandwidth that the last change told is doubted.
DOUBT = 2.0
# What moves a round by less than threads wait for a core is the machine's, and not the wire's. The training thread
# stands for all; it waits outside of rounds, too, so that no more than the most counts. The least is for systems that
# tell nothing, and for threads that move bytes and find no core where this one does.
GRAIN_S, MOST_GRAIN_S = 0.002, 0.02
# No further from what was probed than this, whatever rounds tell.
FURTHEST = 100.0
NEVER = 1 << 60


@dataclass(frozen=True)
class Change:
    """The wire carries something else than before.

    Attributes:
        scale: bandwidth, as a multiple of what was probed at the start.
        before: the same, as it was believed.
        round_s: how long a round keeps the line now.
        usual_s: how long it did.
    """

    scale: float
    before: float
    round_s: float
    usual_s: float

    def __str__(self) -> str:
        return (
            f"rounds of this run keep the wire for {self.round_s * 1e3:,.1f} ms, and {self.usual_s * 1e3:,.1f} ms were "
            f"usual: it carries about {self.scale / self.before:.2g} × what it did"
        )


class Crowd:
    """How long the training thread waits for a core, where others use its cores, too.

    Linux tells how long a thread ran, and how long it waited for a core; elsewhere it never waits.
    """

    def __init__(self, path: pathlib.Path = pathlib.Path("/proc/thread-self/schedstat")) -> None:
        """Takes the file that tells; of the thread that reads it."""
        self._path = path
        self._ran_ns, self._waited_ns = self._read()

    def told(self) -> tuple[float, float]:
        """Returns how many times as long as it ran it was ready to, and how long it waited (s), since the last time."""
        before = self._ran_ns, self._waited_ns
        self._ran_ns, self._waited_ns = self._read()
        ran, waited = self._ran_ns - before[0], self._waited_ns - before[1]
        return (1.0 + max(0, waited) / ran if ran > 0 else 1.0), max(0, waited) * 1e-9

    def _read(self) -> tuple[int, int]:
        try:
            ran, waited, *_ = self._path.read_text(encoding="ascii").split()
            return int(ran), int(waited)
        except (OSError, ValueError):
            return 0, 0


class WireWatch:
    """Compares rounds with what they usually take, the same on every rank.

    A round keeps the line for its bytes over the bandwidth, and for codecs and latencies besides. The bytes' part at
    the probed bandwidth is predicted; the rest is what the first rounds under a plan take beyond it. A later round then
    says what the bandwidth is: of the ranks' times the least, for the others include waiting. A change is believed when
    two looks in a row say the same, so that a burst of someone else's traffic changes nothing; after changes that were
    taken back, more looks. Where threads wait for a core longer than usual, rounds may take as many times as long: who
    moves bytes waits, too. To conclude that the wire has changed, it must see a round move by more time than threads
    wait for a core in it: what is shorter cannot be told from the machine, and is left alone.

    Contract: every rank that trains makes one at the same step, and tells it of every step; a step with a look blocks.

    Attributes:
        scale: bandwidth at present, as a multiple of what was probed.
    """

    def __init__(self, cluster: Cluster) -> None:
        """Takes the cluster as it was probed."""
        self.scale = 1.0
        self._cluster, self._is_sure = cluster, True
        self._predicted: tuple[float, float] = (0.0, 0.0)
        self._predicted_plan: Plan | None = None
        self._crowd = Crowd()
        self._untold = 0  # steps since the last look
        self._turns, self._last = 0, 0  # changes that took back the one before; which way the last one went
        self._begin(None)

    def after_step(self, run: Trainee, profile: Profile) -> Change | None:
        """Counts a step, looks where it is time to, and returns a change that is there for good. Every rank.

        Args:
            run: that is watched.
            profile: of the model; rank 0's counts.
        """
        if run.plan != self._plan:
            self._begin(run.plan)
            self._first = run.times.count
        self._steps += 1
        self._untold += 1
        # By steps alone, which all ranks have made: rounds may still be under way here and not there.
        rounds = self._steps // run.plan.sync.steps_per_round
        if self._steps < self._next_look or not run.plan.sync.is_bulk or rounds <= ROUNDS:
            return None
        seen = run.times.since(self._first + 1)[-ROUNDS:]
        return self._look(run, profile, min(seen, default=None))

    def _begin(self, plan: Plan | None) -> None:
        self._plan, self._steps, self._next_look = plan, 0, ROUNDS + 1
        self._first, self._sign, self._signs = 0, 0, 0
        self._usual_s: float | None = None
        self._usual_crowd = 1.0
        self._rest_s = self._moved_s = 0.0

    def _look(self, run: Trainee, profile: Profile, round_s: float | None) -> Change | None:
        crowd, waited_s = self._crowd.told()
        waited_s /= max(1, self._untold // run.plan.sync.steps_per_round)
        self._untold = 0
        told = run.ask(json.dumps([round_s, *self._expected(run, profile), crowd, waited_s]))
        if told[0] is None:  # rank 0, which decides, has finished
            self._next_look = NEVER
            return None
        answers = [json.loads(text) for text in told if text is not None]
        now_s = min((answer[0] for answer in answers if answer[0] is not None), default=None)
        if now_s is None:
            self._next_look = self._steps + LOOK_STEPS
            return None
        _, wire_s, other_s, *_ = answers[0]
        crowd, waited_s = (max(answer[i] for answer in answers) for i in (3, 4))
        grain_s = min(max(GRAIN_S, waited_s), MOST_GRAIN_S)
        is_known = self._usual_s is not None
        if self._usual_s is None:
            sign = self._calibrate(now_s, wire_s / self.scale, other_s, grain_s)
            self._usual_crowd = crowd
        else:
            if now_s > self._usual_s:
                now_s = max(self._usual_s, now_s / max(1.0, crowd / self._usual_crowd))
            sign = self._compare(now_s, grain_s)
        self._signs = self._signs + 1 if sign == self._sign else 1
        self._sign = sign
        if sign == 0 or self._signs < LOOKS + self._turns:
            self._next_look = self._steps + (AGAIN_STEPS if sign else LOOK_STEPS)
            return None
        # What is beside the wire, where it is predicted only, may not be there: a faster round is all bytes then.
        rest_s = 0.0 if sign > 0 and not is_known else self._rest_s
        usual_s = self._usual_s or self._moved_s + self._rest_s
        change = Change(self._scale_at(now_s, rest_s), self.scale, now_s, usual_s)
        if 1 / BAND < change.scale / self.scale < BAND:  # as far as may be believed already
            self._is_sure, self._usual_s, self._sign = True, None, 0
            self._next_look = self._steps + LOOK_STEPS
            return None
        self.scale = change.scale
        self._turns = min(MOST_TURNS, self._turns + int(sign == -self._last))
        self._last = sign
        self._is_sure = False
        self._begin(None)
        return change

    def _calibrate(self, now_s: float, wire_s: float, other_s: float, grain_s: float) -> int:
        """Takes what is usual under this plan; after a change, only what agrees with the bandwidth that it told."""
        self._moved_s, self._rest_s = wire_s, other_s
        if not self._is_sure and now_s < min(wire_s / BEYOND, wire_s - grain_s):
            return 1
        if not self._is_sure and now_s > max(DOUBT * (wire_s + other_s), wire_s + other_s + grain_s):
            return -1
        self._usual_s, self._is_sure = now_s, True
        self._moved_s = min(now_s, wire_s)
        self._rest_s = now_s - self._moved_s
        return 0

    def _compare(self, now_s: float, grain_s: float) -> int:
        """Returns 1 where a round was faster than the bandwidth allows, -1 where all are slower than that explains."""
        assert self._usual_s is not None
        if now_s < min(self._moved_s / BEYOND, self._moved_s - grain_s):
            return 1
        if now_s < self._usual_s:  # what is beside the wire takes less
            self._rest_s, self._usual_s = max(0.0, now_s - self._moved_s), now_s
        counts = self._moved_s > SHARE * self._usual_s or now_s > MUCH * self._usual_s
        slower = (
            now_s > max(GROWN * self._usual_s, self._usual_s + grain_s)
            and now_s - BUSY * self._rest_s > BAND * self._moved_s
        )
        return -int(counts and slower)

    def _scale_at(self, now_s: float, rest_s: float) -> float:
        """Returns the bandwidth that a round tells, as a multiple of the probed one."""
        least_s = max(self._moved_s / MOST, 1e-9)
        found = self.scale * max(self._moved_s / max(now_s - rest_s, least_s), 1 / MOST)
        # What was beside the wire may have been a busy processor's: beyond what was probed, bytes alone count.
        found = min(found, max(1.0, self.scale * self._moved_s / now_s))
        return min(max(found, 1 / FURTHEST), FURTHEST)

    def _expected(self, run: Trainee, profile: Profile) -> tuple[float, float]:
        """Returns a round's time on the wire as it was probed, and its other time, as predicted; rank 0's count."""
        if run.transport.rank == 0 and run.plan != self._predicted_plan:
            whole = SimulatedExchange(plan=run.plan, profile=profile, cluster=self._cluster, quick=True).whole
            self._predicted, self._predicted_plan = (whole.wire_s, whole.codec_s + whole.latency_s), run.plan
        return self._predicted
