"""ACP-SGD: one factor per round, half of PowerSGD's bytes, and the iteration that both share."""

import torch

from tightwire.averaging import ACPSGD, PowerSGD
from tightwire.buckets import plan_layout
from tightwire.transport import Counting, Transport, run_threads


def test_a_matrix_of_low_rank_that_stays_is_found() -> None:
    torch.manual_seed(0)
    left, right = torch.randn(40, 2), torch.randn(2, 30)

    def worker(transport: Transport) -> list[int]:
        counting = Counting(transport)
        (layout,) = plan_layout({"w": torch.empty(40, 30), "b": torch.empty(5)}, [[0, 1]])
        averager = ACPSGD(2).build(counting, layout, tag=0)
        given = torch.cat([(left @ right * (1 + transport.rank)).flatten(), torch.ones(5)])
        mean, sent = torch.empty(layout.numel), []
        for number in range(6):
            before = counting.bytes_sent
            work = given.clone()
            averager.run(work, mean, seed=number)
            averager.keep()
            sent.append(counting.bytes_sent - before)
        torch.testing.assert_close(mean[:1200], (left @ right * 1.5).flatten(), rtol=1e-3, atol=1e-4)
        assert not work[1200:].any()
        return sent

    sent = run_threads(2, worker, deadline_s=20)[0]
    assert sent[0] > sent[1]
    assert sent == [sent[0], sent[1]] * 3


def test_a_round_sends_half_of_what_powersgd_does() -> None:
    shapes = [(512, 512), (1024, 256)]
    both = PowerSGD(4).bytes_sent(shapes, 4, 8, 0)
    assert ACPSGD(4).expected_bytes(shapes, 4, 8, 0) * 2 == both
