"""Who talks to whom: gossip and its compressed kin against all-reduce and a server, on like and unlike data."""

from __future__ import annotations

from tightwire.study.claims import Claim, ahead_at_equal_time, all_of, faster, no_worse, within, worse
from tightwire.study.rates import rates_study
from tightwire.study.settings import TrainingSettings
from tightwire.study.study import Scene, Study, full_text
from tightwire.study.tasks import Digits, Images, Language


def _gossip(architecture: str, compression: str = "none", sync: str = "bsp") -> str:
    return full_text(f"{sync}/{architecture}/{compression}/sequential")


DENSE, PS = full_text("bsp/allreduce/none/sequential"), full_text("bsp/ps/none/sequential")
D_PSGD, D2 = _gossip("gossip:ring"), _gossip("gossip:ring,method=d2")
SGP, PEERS = _gossip("gossip:sgp"), _gossip("gossip:one-peer-exponential")
AD_PSGD = _gossip("gossip:ad-psgd", sync="asp")
TOP1, RANDOM1 = "topk:0.01", "randomk:0.01"
UNCOMPRESSED = (
    DENSE,
    PS,
    D_PSGD,
    D2,
    SGP,
    PEERS,
    AD_PSGD,
    *(
        _gossip(f"gossip:{graph}")
        for graph in ("complete", "torus", "exponential", "expander", "matcha", "gossipgrad")
    ),
    # The paper's outer momentum; 0.9 is too long a memory for fifty rounds.
    _gossip("gossip:noloco", sync="diloco:8,outer_momentum=0.5"),
)


def _ring(codec: str, stage: str) -> str:
    return _gossip("gossip:ring", f"{codec}+{stage}")


# γ was tuned by factors of two, as in the paper, with a seed that is not among those of the study: twice the default.
CHOCO = {codec: _ring(codec, "choco") for codec in ("int8", "int4", "int2", "efsign", RANDOM1)}
CHOCO[TOP1] = _ring(TOP1, "choco:gamma=0.1")
SAPS = _gossip("gossip:bandwidth", "saps:0.1")
PLANS = (
    *UNCOMPRESSED,
    *CHOCO.values(),
    *(_ring(codec, "dcd") for codec in ("int8", "int4", "int2", TOP1, RANDOM1)),
    *(_ring(codec, "ecd") for codec in ("int8", "int4", TOP1)),
    _ring("topk:0.25", "deepsqueeze"),
    SAPS,
)
# On unlike data each worker's batch statistics are of its own classes, under dense gradients too.
NOT_NORMALISED = ("digits", "text")
ALIKE, UNLIKE, NO_MOMENTUM, EQUAL_TIME = "plain", "unlike", "unlike, no momentum", "100 Mb/s"
CLAIMS = (
    Claim(
        "CHOCO holds at 4 bits (Koloskova et al. 2019, table 1): within 2 % of exact gossip.",
        within(CHOCO["int4"], D_PSGD, 0.02),
        ALIKE,
    ),
    Claim(
        "CHOCO holds at the largest 1 % (Koloskova et al. 2019, table 1): within 2 % of exact gossip.",
        within(CHOCO[TOP1], D_PSGD, 0.02),
        ALIKE,
        because="An element waits for about a hundred steps, of 600.",
    ),
    Claim(
        "DCD fails where little is sent (Koloskova et al. 2019): below 4 bits, and with a random 1 %, it is worse "
        "than with 8 bits.",
        all_of(*(worse(_ring(codec, "dcd"), _ring("int8", "dcd")) for codec in ("int2", RANDOM1))),
        ALIKE,
        because="Digits are learnt in few steps: two bits do them no harm, a random hundredth does.",
    ),
    Claim(
        "There CHOCO is better (Koloskova et al. 2019).",
        all_of(*(worse(_ring(codec, "dcd"), CHOCO[codec]) for codec in ("int2", TOP1, RANDOM1))),
        ALIKE,
        because="Digits are learnt in few steps: two bits do them no harm under either.",
    ),
    Claim(
        "ECD fails first (Koloskova et al. 2019): at 4 bits, and at the largest 1 %, it is worse than DCD.",
        all_of(*(worse(_ring(codec, "ecd"), _ring(codec, "dcd")) for codec in ("int4", TOP1))),
        ALIKE,
        because="On digits 4 bits make less of a difference than seeds do.",
    ),
    Claim("SGP is as good as D-PSGD (Assran et al. 2019).", no_worse(SGP, PEERS), ALIKE),
    Claim("SGP is no worse than D-PSGD on unlike data.", no_worse(SGP, PEERS), UNLIKE),
    Claim(
        "D² is better than D-PSGD on unlike data (Tang et al. 2018), on the same ring at the same rate.",
        worse(D_PSGD, D2),
        NO_MOMENTUM,
        because=(
            "After 160 steps at this rate dense gradients themselves know 41 % of the digits: too early to tell. "
            "After 400, one seed, D² was at 0.759 and D-PSGD at 0.729."
        ),
    ),
    Claim(
        "On a slow line gossip with one peer makes more steps per second than all-reduce (Assran et al. 2019).",
        faster(PEERS, DENSE, 1.0),
        EQUAL_TIME,
        because="Eight workers share two cores, and mixing takes more of them than a mean does.",
    ),
    Claim(
        "In equal time it has come further there.",
        ahead_at_equal_time(PEERS, DENSE),
        EQUAL_TIME,
        because="Eight workers share two cores, and mixing takes more of them than a mean does.",
    ),
)

ARCHITECTURE = Study(
    name="architecture",
    about="what does it cost in held-out quality to talk to few workers instead of all, and to tell them less?",
    workers=8,
    plans=PLANS,
    dense=DENSE,
    # Half as long as in the other studies: twice as many workers share the processor.
    tasks=(Digits(), Images(), Language(steps=600)),
    scenes=(
        Scene(name=ALIKE),
        Scene(
            name=UNLIKE,
            split="unlike",
            tasks=NOT_NORMALISED,
            plans=(*UNCOMPRESSED, *(CHOCO[codec] for codec in ("int8", "int4", TOP1)), SAPS),
        ),
        # D²'s paper has none, and its theorem 1 asks for a rate that falls with the gap of W. With twice these rates
        # D² lost digits for two of the seeds 100 to 102, and D-PSGD diverged on text for 100.
        Scene(
            name=NO_MOMENTUM,
            split="unlike",
            tasks=NOT_NORMALISED,
            plans=(DENSE, D_PSGD, D2),
            settings={
                "digits": TrainingSettings(optimizer="sgd", lr=0.05),
                "text": TrainingSettings(optimizer="sgd", lr=1.0),
            },
        ),
        Scene(
            name=EQUAL_TIME,
            rate_bytes_per_s=12.5e6,
            length=0.5,
            snapshots=20,
            tasks=NOT_NORMALISED,
            plans=(
                DENSE,
                PS,
                D_PSGD,
                SGP,
                PEERS,
                AD_PSGD,
                CHOCO["int4"],
                CHOCO[TOP1],
                SAPS,
            ),
        ),
    ),
    claims=CLAIMS,
)
RATES = rates_study(ARCHITECTURE)
