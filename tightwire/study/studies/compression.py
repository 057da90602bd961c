"""What is sent: every codec and every reduction against dense gradients, in equal steps."""

from __future__ import annotations

from tightwire.averaging import AveragingMethod
from tightwire.catalogue import catalogue
from tightwire.compression import Codec, Recipe
from tightwire.errors import PlanError
from tightwire.study.claims import Claim, all_of, no_worse, same, within, worse
from tightwire.study.rates import rates_study
from tightwire.study.study import DDP, DDP_POWERSGD, PLAIN, Scene, Study, dense_scenes, full_text
from tightwire.study.tasks import Language

DENSE = full_text("none")
# Matrices alone are compressed, as the papers of DGC and PowerSGD do, and sparsity grows in the first rounds.
SPARSE = "topk:0.01+ef+warmup:60+min:dims=2"
# As recommended since: with the momentum before the choice of elements instead of after it, and clipped.
CORRECTED = "dgc:0.01,warmup=60"
SIGNS = "efsign+ef+min:dims=2"
# As many exact rounds at each distance as the rate rises for, and no more of them than 1-bit Adam has.
ZERO_ONE_ADAM = "zero-one-adam:40,until=200"
# Methods as they are recommended, and without what makes them work, to see that it does.
USUAL = (
    "none",
    "bf16",
    "fp16",
    "fp8",
    "int8",
    "int8:rounding=stochastic",
    "int4",
    "int4+ef",
    "int2+ef",
    "qsgd:127",
    "qsgd:7",
    "qsgd:7+diana:0.1",
    "natural",
    "terngrad",
    "efsign+min:dims=2",
    SIGNS,
    "onebit+min:dims=2",
    "onebit+ef+min:dims=2",
    "topk:0.01+min:dims=2",
    "topk:0.01+ef",
    SPARSE,
    "topk:0.01+ef21",
    "stc:0.01+ef",
    "powersgd:4+ef",
    "atomo:3",
    CORRECTED,
    # An element waits 1/ratio rounds: at 1 %, a quarter of the digits' training.
    "randomk:0.05+ef",
    # The size of what is sent is the threshold: it has to be about that of a gradient's largest hundredth.
    "strom:0.1+ef",
    "onebit-adam:100",
    "onebit-lamb:100",  # sends what 1-bit Adam does
    ZERO_ONE_ADAM,
    "int4+loco",
    "topk:0.01+adacomp",
    "topk:0.01+variance",
)


def _members() -> tuple[str, ...]:
    """Returns the methods that no text above uses, by their own example: a new one takes part by itself."""
    used = {stage.partition(":")[0] for text in USUAL for stage in text.split("+")}
    texts = []
    for name, member in catalogue("compression").items():
        if issubclass(member, Codec | AveragingMethod | Recipe) and name not in used:
            texts.append(member.example or name)
    return tuple(text for text in texts if _works(text))


def _works(text: str) -> bool:
    try:
        full_text(text)
    except PlanError:
        return False
    return True


CLAIMS = (
    Claim(
        "Error feedback repairs top-k 1 % (Stich et al. 2018): better with it than without.",
        worse(full_text("topk:0.01+min:dims=2"), full_text(SPARSE)),
    ),
    Claim(
        "Top-k 1 % with feedback, momentum correction and clipping is within 1 % of dense (Lin et al. 2018).",
        within(full_text(CORRECTED), DENSE, 0.01),
    ),
    Claim(
        "Top-k 1 % with feedback under the optimizer's own momentum is within 1 % of dense.",
        within(full_text(SPARSE), DENSE, 0.01),
        because=(
            "An element waits for about a hundred steps, of 800, and the optimizer's momentum acts on their "
            "sum at once."
        ),
    ),
    Claim(
        "Error feedback repairs signs (Karimireddy et al. 2019): worse than dense without it, better with it.",
        all_of(
            worse(full_text("efsign+min:dims=2"), DENSE),
            worse(full_text("efsign+min:dims=2"), full_text(SIGNS)),
        ),
    ),
    Claim(
        "Unbiased quantisers of 8 bits are indistinguishable from dense (Alistarh et al. 2017).",
        all_of(*(same(full_text(text), DENSE) for text in ("qsgd:127", "int8:rounding=stochastic"))),
    ),
    Claim(
        "16 bits are indistinguishable from dense (Micikevicius et al. 2018).",
        all_of(*(same(full_text(text), DENSE) for text in ("bf16", "fp16"))),
    ),
    Claim(
        "PowerSGD of rank 4 is within 1 % of dense (Vogels et al. 2019).",
        within(full_text("powersgd:4+ef"), DENSE, 0.01),
        because="800 steps without a dense start; the paper trains for hundreds of epochs.",
    ),
    Claim(
        "Unbiased quantisers of few levels are within 4 % of dense (Alistarh et al. 2017; Wen et al. 2017).",
        all_of(*(within(full_text(text), DENSE, 0.04) for text in ("qsgd:7", "terngrad"))),
    ),
    Claim(
        "Powers of two are within 0.5 % of dense (Horváth et al. 2019), and so are three values with feedback.",
        all_of(*(within(full_text(text), DENSE, 0.005) for text in ("natural", "int2+ef"))),
        because="A power of two is off by up to a third, and so few steps do not average that out.",
    ),
    Claim(
        "0/1 Adam is within 0.5 % of 1-bit Adam (Lu et al. 2022).",
        within(full_text(ZERO_ONE_ADAM), full_text("onebit-adam:100"), 0.005),
    ),
    Claim(
        "Int4 with feedback is no worse than without.",
        no_worse(full_text("int4+ef"), full_text("int4")),
    ),
)

# A model whose gradients weigh on a slow line: 4.9 million parameters.
LARGE = Language(name="text-large", steps=80, width=256, layers=6, length=64)
RACE = Study(
    name="compression-race",
    about="how long until the held-out loss that stock DDP ends with, on a slow line?",
    workers=4,
    plans=(DDP, DDP_POWERSGD, *map(full_text, ("powersgd:4+ef", "topk:0.01+ef", "int4+ef", "stc:0.01+ef"))),
    dense=DDP,
    tasks=(LARGE,),
    scenes=(Scene(name="slow line", rate_bytes_per_s=12.5e6, snapshots=30),),
    longer=lambda plan: 1.0 if plan == DDP else 1.5,
)

PLANS = tuple(dict.fromkeys(map(full_text, (*filter(_works, USUAL), *_members()))))
# What is rounded, and left out, by more workers: where noise of codecs averages out, and where leftovers add up.
BY_MANY = tuple(
    map(
        full_text,
        (
            "none",
            "int8",
            "int4+ef",
            "int2+ef",
            "qsgd:7",
            "qsgd:7+diana:0.1",
            "natural",
            "terngrad",
            SIGNS,
            SPARSE,
            CORRECTED,
            "powersgd:4+ef",
        ),
    )
)
COMPRESSION = Study(
    name="compression",
    about="what does a codec cost in held-out quality, and what does it save in bytes?",
    workers=4,
    plans=PLANS,
    dense=DENSE,
    scenes=(
        PLAIN,
        *dense_scenes(PLANS, DENSE),
        *(
            Scene(name=f"{workers} workers", workers=workers, plans=BY_MANY, tasks=("digits",))
            for workers in (8, 16)
        ),
    ),
    claims=CLAIMS,
    race=RACE,
)
RATES = rates_study(COMPRESSION)
