"""LoCo against its Algorithm 1, written out, on one worker's own values."""

from __future__ import annotations

import pytest
import torch

from tests.laws.test_codecs import codec_of, round_trip
from tests.laws.test_stages import averager, values
from tightwire.architecture.round import Round
from tightwire.errors import PlanError
from tightwire.plan import Plan
from tightwire.transport import Transport, run_threads

BETA, RESET = 0.3, 4


def test_it_is_the_papers_algorithm() -> None:
    """`direct` encodes each part for its owner, but the owner's own: gathered, all is encoded once."""

    def worker(transport: Transport) -> None:
        a = averager(transport, f"blocktopk:0.5+loco:{BETA},reset={RESET}", {"w": torch.zeros(128)})
        codec, error = codec_of("blocktopk:0.5"), torch.zeros(128)
        for number in range(1, 11):
            h = values(error, transport.rank, number) + error
            a.bucket.flat.copy_(values(error, transport.rank, number))
            a.run(Round(number=number, seed=number))
            a.keep()
            leftover = round_trip(codec, h)[2]
            error = torch.zeros(128) if number % RESET == 0 else (1 - BETA) * error + BETA * leftover
            torch.testing.assert_close(a.memory()["w"]["loco"], error)

    run_threads(2, worker)


@pytest.mark.parametrize("text", ["int4+loco:0", "int4+loco:1.5", "int4+loco:reset=-1", "int4+loco+ef"])
def test_what_cannot_be_says_why(text: str) -> None:
    with pytest.raises(PlanError, match="loco"):
        Plan.parse(f"bsp/allreduce/{text}")
