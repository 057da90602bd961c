"""When replicas agree: policies on even workers, on a slow line, and beside a straggler."""

from __future__ import annotations

from tightwire.study.claims import (
    Check,
    Claim,
    ClaimVerdict,
    Findings,
    ahead_at_equal_time,
    all_of,
    faster,
    fewer_bytes,
    no_worse,
    within,
)
from tightwire.study.rates import rates_study
from tightwire.study.study import ANY, DDP, Scene, Study, full_text

# In one bucket: the models are small.
ONE = "allreduce/none/sequential"
BSP, LOCAL, LONG = f"bsp/{ONE}", f"local:8/{ONE}", f"local:32/{ONE}"
HIERARCHICAL, ADACOMM = f"hierarchical-local:2,H2=8,node=2/{ONE}", f"adacomm:8/{ONE}"
POSTLOCAL = f"postlocal:8,start=100/{ONE}"
# A dozen rounds are too few for the memory of 0.9.
DILOCO = f"diloco:32,outer_momentum=0.6/{ONE}"
OVERLAPPED, DILOCO_LATE = f"local:8,overlap=8/{ONE}", f"diloco:32,overlap=32/{ONE}"
STREAMED = full_text("diloco:32/allreduce/none/streaming:4")
DELAYED, LAG, GAIA = (full_text(f"{sync}/{ONE}") for sync in ("delayed:1", "lag:0.1", "gaia:1"))
SERVED = "ps/none/sequential"
SSP, ASP, BACKUP = f"ssp:4/{SERVED}", f"asp/{SERVED}", f"backup:1/{SERVED}"
SCALED, COMPENSATED = f"asp:rate_by=staleness/{SERVED}", f"asp:dc=0.04/{SERVED}"
QUORUM = f"diloco:32,outer_momentum=0.6,quorum=0.75/{ONE}"
ASYNC = f"async-diloco:32,outer_momentum=0.6/{SERVED}"
FEW_BITS = full_text("diloco:32,outer_momentum=0.6/allreduce/int4+ef/sequential")
# As many rounds as make the leftover a momentum, of a share that an element does not wait long for.
SPARSE = full_text("diloco:8,outer_lr=1.25,outer_momentum=0/allreduce/sparseloco:0.1,chunk=256/sequential")
COUPLED = f"adacomm:8,coupled=true/{ONE}"
MULOCO = f"muloco:32,outer_momentum=0.6/{ONE}"
# Of 2023 and later, and what follows the rate, tried among equals alone.
RECENT = (
    f"edit:32,outer_momentum=0.6/{ONE}",
    f"diloco:32,outer_momentum=0.6,overlap=32,eager=true/{ONE}",
    FEW_BITS,
    SPARSE,
    full_text("diloco:32,outer_momentum=0.6,overlap=32/allreduce/dilocox/sequential"),
    full_text("local:32/allreduce/sparseloco/sequential"),
    full_text("local:32/allreduce/sparseloco:0.125/sequential"),
    f"local:8,momenta=3/{ONE}",
    f"sparta/{ONE}",
    f"acco/{ONE}",
    COUPLED,
    MULOCO,
)
# Where seconds count: of images a step takes as long as of digits, and the wire as long as for text.
TIMED = ("digits", "text")
EVEN, SLOW_LINE, HIDDEN, STRAGGLER = "even", "50 Mb/s", "50 Mb/s and long steps", "straggler"


def hidden(plan: str, behind: str, share: float) -> Check:
    """Checks that a plan waits at most a share of what another does."""

    def check(findings: Findings) -> ClaimVerdict:
        mine, others = (_waited_s(findings, p) for p in (plan, behind))
        if mine is None or others is None:
            return ClaimVerdict(None, f"{plan} and {behind} are needed")
        numbers = f"{plan} waits {mine * 1e3:.1f} ms per step, {behind} {others * 1e3:.1f} ms"
        return ClaimVerdict(mine <= share * others, f"{numbers}, wanted at most {share:.0%} of that")

    return check


def _waited_s(findings: Findings, plan: str) -> float | None:
    waits = [s for t in findings.of(plan).trials for s in t.exposed_s]
    known = [s for s in waits if s is not None]
    return sum(known) / len(known) if known and len(known) == len(waits) else None


def any_of(*checks: Check) -> Check:
    """Checks that one of several things holds."""

    def check(findings: Findings) -> ClaimVerdict:
        verdicts = [one(findings) for one in checks]
        known = [v.holds for v in verdicts if v.holds is not None]
        return ClaimVerdict(any(known) if known else None, "; ".join(v.numbers for v in verdicts))

    return check


CLAIMS = (
    Claim(
        "local:8 is within 1 % of bsp at an eighth of the bytes (Stich 2019).",
        all_of(within(LOCAL, BSP, 0.01), fewer_bytes(LOCAL, BSP, 7.5)),
        EVEN,
        because="In 800 steps the drift of eight does not average out; the papers train far longer.",
    ),
    Claim("Post-local is at least as good as local (Lin et al. 2020).", no_worse(POSTLOCAL, LOCAL), EVEN),
    Claim(
        "DiLoCo:32 is within 2 % of bsp at 1/32 of the bytes, and better than local:32 (Douillard et al. 2023).",
        all_of(within(DILOCO, BSP, 0.02), fewer_bytes(DILOCO, BSP, 30), no_worse(DILOCO, LONG)),
        EVEN,
        because="25 rounds are few for an outer momentum; the paper has hundreds.",
    ),
    Claim(
        "SparseLoCo is better than DiLoCo with int4 and feedback, at a hundredth of DDP's bytes (Sarfi et al. 2025).",
        all_of(no_worse(SPARSE, FEW_BITS), fewer_bytes(SPARSE, BSP, 100)),
        EVEN,
    ),
    Claim(
        "A delay of one step costs no more than 1 % (Li et al. 2018).",
        within(DELAYED, BSP, 0.01),
        EVEN,
        because=(
            "A delay of one does not bear the optimizer's momentum at this rate, and plain SGD is slower."
        ),
    ),
    Claim(
        "On a slow line the best policy makes at least 6 times as many steps per second as DDP.",
        any_of(*(faster(plan, DDP, 6.0) for plan in (LOCAL, LONG, DILOCO))),
        SLOW_LINE,
    ),
    Claim(
        "There, in the same time, the policy that agrees every 8 steps comes further than bsp (Stich 2019).",
        ahead_at_equal_time(LOCAL, BSP),
        SLOW_LINE,
    ),
    Claim(
        "A delay hides the exchange where the line needs less time than compute (Li et al. 2018).",
        hidden(DELAYED, BSP, 0.1),
        HIDDEN,
    ),
    Claim(
        "Beside a straggler ssp and asp make at least twice as many steps per second as bsp (Ho et al. 2013).",
        all_of(faster(SSP, BSP, 2.0), faster(ASP, BSP, 2.0)),
        STRAGGLER,
        because=(
            "Each worker is slow in a quarter of its steps: were nothing spent on exchanges, twice as many "
            "steps would be the most."
        ),
    ),
    Claim(
        "There DiLoCo with a quorum of three quarters is no slower than DiLoCo, and within 2 % of its quality "
        "(Decoupled DiLoCo 2026).",
        all_of(faster(QUORUM, DILOCO, 1.0), within(QUORUM, DILOCO, 0.02)),
        STRAGGLER,
        because=("Five rounds are few, and a late change is carried on top of what the others agreed on."),
    ),
    Claim(
        "Asynchronous DiLoCo is there no slower than DiLoCo, and within 2 % of its quality (Liu et al. 2024).",
        all_of(faster(ASYNC, DILOCO, 1.0), within(ASYNC, DILOCO, 0.02)),
        STRAGGLER,
        because="Five rounds a worker are too few for a momentum that is applied every four changes.",
    ),
    Claim(
        "A backup worker does too (Chen et al. 2016).",
        faster(BACKUP, BSP, 2.0),
        STRAGGLER,
        because=(
            "Of four workers one is late in every step; a late one begins out of step with the others, and "
            "is soon late again. Simulated, three of four make 1.5 times as many steps as bsp."
        ),
    ),
    Claim(
        "ssp stands between bsp and asp in speed and in quality (Ho et al. 2013).",
        all_of(faster(SSP, BSP, 1.0), faster(ASP, SSP, 0.95), no_worse(SSP, ASP)),
        STRAGGLER,
    ),
)

PLANS = (
    DDP,
    BSP,
    LOCAL,
    LONG,
    OVERLAPPED,
    POSTLOCAL,
    HIERARCHICAL,
    ADACOMM,
    f"slowmo:8/{ONE}",
    f"easgd:8/{ONE}",
    DILOCO,
    f"diloco:32/{ONE}",
    DILOCO_LATE,
    STREAMED,
    full_text("diloco:32/allreduce/int4+ef/streaming:4"),
    full_text(f"fedavg:8,fraction=0.5/{ONE}"),
    DELAYED,
    LAG,
    GAIA,
    SSP,
    ASP,
    SCALED,
    COMPENSATED,
    BACKUP,
    QUORUM,
    ASYNC,
    *RECENT,
)
# What is made for stragglers is tried beside one; on a slow line post-local would end before its local part begins.
AMONG_EQUALS = tuple(plan for plan in PLANS if plan not in (SCALED, COMPENSATED, BACKUP, QUORUM, ASYNC))
ON_SLOW_LINE = tuple(plan for plan in AMONG_EQUALS if plan not in (POSTLOCAL, *RECENT))
BESIDE_STRAGGLER = (
    DDP, BSP, LOCAL, OVERLAPPED, DILOCO, DELAYED, SSP, ASP, SCALED, COMPENSATED, BACKUP, QUORUM, ASYNC,
)  # fmt: skip
SYNC = Study(
    name="sync",
    about="what does agreeing less often, or later, cost in held-out quality, and what does it save?",
    workers=4,
    plans=PLANS,
    dense=BSP,
    scenes=(
        Scene(name=EVEN, rate_bytes_per_s=125e6, snapshots=20, plans=AMONG_EQUALS),
        Scene(
            name=SLOW_LINE,
            rate_bytes_per_s=6.25e6,
            length=0.25,
            snapshots=20,
            plans=ON_SLOW_LINE,
            tasks=TIMED,
        ),
        # The wire needs 38 and 52 ms a step.
        Scene(
            name=HIDDEN,
            rate_bytes_per_s=6.25e6,
            wait_s=0.08,
            length=0.1,
            plans=(DDP, BSP, OVERLAPPED, DELAYED),
            tasks=TIMED,
        ),
        Scene(
            name=STRAGGLER,
            wait_s=0.03,
            slow_rank=ANY,
            slow_share=1.0,
            length=0.2,
            snapshots=20,
            plans=BESIDE_STRAGGLER,
            tasks=TIMED,
            has_own_rates=True,
        ),
    ),
    claims=CLAIMS,
)
RATES = rates_study(SYNC)
