"""Who talks to whom: gossip and its compressed kin against all-reduce and a server, on like and unlike data."""

from __future__ import annotations

from tightwire.study.claims import Claim, all_of, same, within, worse
from tightwire.study.study import Scene, Study, full_text


def _gossip(architecture: str, compression: str = "none", sync: str = "bsp") -> str:
    return full_text(f"{sync}/{architecture}/{compression}/sequential")


DENSE = full_text("bsp/allreduce/none/sequential")
D_PSGD, D2 = _gossip("gossip:ring"), _gossip("gossip:ring,method=d2")
SGP, PEERS = _gossip("gossip:sgp"), _gossip("gossip:one-peer-exponential")
TOP1 = "topk:0.01"
PLANS = (
    DENSE,
    full_text("bsp/ps/none/sequential"),
    D_PSGD,
    D2,
    _gossip("gossip:expander,method=d2"),
    SGP,
    PEERS,
    _gossip("gossip:ad-psgd", sync="asp"),
    *(
        _gossip(f"gossip:{graph}")
        for graph in ("complete", "torus", "exponential", "expander", "matcha", "gossipgrad")
    ),
    *(_gossip("gossip:ring", f"{codec}+choco") for codec in ("int8", "int4", "efsign", TOP1)),
    *(
        _gossip("gossip:ring", f"{codec}+{stage}")
        for stage in ("dcd", "ecd")
        for codec in ("int8", "int4", TOP1)
    ),
    _gossip("gossip:ring", "topk:0.25+deepsqueeze"),
    _gossip("gossip:bandwidth", "saps:0.1"),
    _gossip("gossip:noloco", sync="diloco:8"),
)
CLAIMS = (
    Claim(
        "CHOCO holds at 4 bits and at the largest 1 % (Koloskova et al. 2019, table 1): within 2 % of exact gossip.",
        all_of(*(within(_gossip("gossip:ring", f"{codec}+choco"), D_PSGD, 0.02) for codec in ("int4", TOP1))),
    ),
    Claim(
        "DCD fails where little is sent (Koloskova et al. 2019): at the largest 1 %, CHOCO is better.",
        worse(_gossip("gossip:ring", f"{TOP1}+dcd"), _gossip("gossip:ring", f"{TOP1}+choco")),
    ),
    Claim(
        "ECD fails first (Koloskova et al. 2019): at 4 bits it is worse than DCD.",
        worse(_gossip("gossip:ring", "int4+ecd"), _gossip("gossip:ring", "int4+dcd")),
    ),
    Claim(
        "D² is better than D-PSGD on unlike data (Tang et al. 2018).",
        worse(_gossip("gossip:expander"), _gossip("gossip:expander,method=d2")),
        scene="unlike",
    ),
    Claim("SGP is as good as D-PSGD (Assran et al. 2019).", same(SGP, PEERS)),
)
ARCHITECTURE = Study(
    name="architecture",
    about="what does it cost in held-out quality to talk to few workers instead of all, and to tell them less?",
    workers=8,
    plans=PLANS,
    dense=DENSE,
    scenes=(Scene(), Scene(name="unlike", split="unlike")),
    claims=CLAIMS,
)
