"""When replicas agree: policies on even workers, on a slow line, and beside a straggler."""

from __future__ import annotations

from tightwire.study.claims import Check, Claim, Findings, Verdict, all_of, fewer_bytes, no_worse, within
from tightwire.study.study import DDP, Scene, Study

# In one bucket: the models are small.
ONE = "allreduce/none/sequential"
BSP, LOCAL, LONG = f"bsp/{ONE}", f"local:8/{ONE}", f"local:32/{ONE}"
POSTLOCAL = f"postlocal:8,start=100/{ONE}"
# A dozen rounds are too few for the memory of 0.9.
DILOCO = f"diloco:32,outer_momentum=0.6/{ONE}"
DELAYED = f"delayed:1/{ONE}"
SSP, ASP, BACKUP = "ssp:4/ps/none/sequential", "asp/ps/none/sequential", "backup:1/ps/none/sequential"
EVEN, SLOW_LINE, STRAGGLER = "even", "50 Mb/s", "straggler"


def faster(plan: str, than: str, times: float) -> Check:
    """Checks that a plan makes at least `times` as many steps per second as another."""

    def check(findings: Findings) -> Verdict:
        mine, others = (_step_s(findings, p) for p in (plan, than))
        if mine is None or others is None:
            return Verdict(None, f"{plan} and {than} are needed")
        numbers = f"{plan} {mine * 1e3:.1f} ms per step, {than} {others * 1e3:.1f} ms: {others / mine:.2f}×"
        return Verdict(others / mine >= times, f"{numbers}, wanted {times:g}×")

    return check


def any_of(*checks: Check) -> Check:
    """Checks that one of several things holds."""

    def check(findings: Findings) -> Verdict:
        verdicts = [one(findings) for one in checks]
        known = [v.holds for v in verdicts if v.holds is not None]
        return Verdict(any(known) if known else None, "; ".join(v.numbers for v in verdicts))

    return check


def _step_s(findings: Findings, plan: str) -> float | None:
    trials = [t for t in findings.of(plan).trials if t.seconds]
    return sum(t.seconds / t.steps for t in trials) / len(trials) if trials else None


CLAIMS = (
    Claim(
        "local:8 is within 1 % of bsp at an eighth of the bytes (Stich 2019).",
        all_of(within(LOCAL, BSP, 0.01), fewer_bytes(LOCAL, BSP, 7.5)),
        EVEN,
    ),
    Claim("Post-local is at least as good as local (Lin et al. 2020).", no_worse(POSTLOCAL, LOCAL), EVEN),
    Claim(
        "DiLoCo:32 is within 2 % of bsp at 1/32 of the bytes, and better than local:32 (Douillard et al. 2023).",
        all_of(within(DILOCO, BSP, 0.02), fewer_bytes(DILOCO, BSP, 30), no_worse(DILOCO, LONG)),
        EVEN,
    ),
    Claim("A delay of one step costs no more than 1 % (Li et al. 2018).", within(DELAYED, BSP, 0.01), EVEN),
    Claim(
        "On a slow line the best policy makes at least 6 times as many steps per second as DDP.",
        any_of(*(faster(plan, DDP, 6.0) for plan in (LOCAL, LONG, DILOCO))),
        SLOW_LINE,
    ),
    Claim(
        "Beside a straggler ssp and asp make at least twice as many steps per second as bsp (Ho et al. 2013).",
        all_of(faster(SSP, BSP, 2.0), faster(ASP, BSP, 2.0)),
        STRAGGLER,
    ),
    Claim(
        "A backup worker does too (Chen et al. 2016).",
        faster(BACKUP, BSP, 2.0),
        STRAGGLER,
    ),
    Claim(
        "ssp stands between bsp and asp in speed and in quality (Ho et al. 2013).",
        all_of(faster(SSP, BSP, 1.0), faster(ASP, SSP, 0.95), no_worse(SSP, ASP)),
        STRAGGLER,
    ),
)

SYNC = Study(
    name="sync",
    about="what does agreeing less often, or later, cost in held-out quality, and what does it save?",
    workers=4,
    plans=(
        DDP,
        BSP,
        LOCAL,
        LONG,
        f"local:8,overlap=8/{ONE}",
        POSTLOCAL,
        f"slowmo:8/{ONE}",
        f"easgd:8/{ONE}",
        DILOCO,
        f"diloco:32/{ONE}",
        f"diloco:32,overlap=32/{ONE}",
        "diloco:32/allreduce/none/streaming:4",
        "diloco:32/allreduce/int4+ef/streaming:4",
        f"fedavg:8,fraction=0.5/{ONE}",
        DELAYED,
        "gaia:1",
        SSP,
        ASP,
        BACKUP,
    ),
    dense=BSP,
    scenes=(
        Scene(name=EVEN, rate_bytes_per_s=125e6),
        Scene(name=SLOW_LINE, rate_bytes_per_s=6.25e6),
        Scene(name=STRAGGLER, wait_s=0.03, slow_rank=2),
    ),
    claims=CLAIMS,
)
