"""What an exchange leaves behind, and what is made of the rounds that were watched."""

import subprocess
import sys
import textwrap
import threading
from unittest.mock import MagicMock, create_autospec

import pytest

from tightwire.architecture.round import Round
from tightwire.errors import PeerError
from tightwire.runtime.background import Background
from tightwire.runtime.exchange import Exchange
from tightwire.runtime.observed import fit
from tightwire.runtime.spans import RoundTimes
from tightwire.runtime.trace import Tracer
from tightwire.schedule import InOrder
from tightwire.transport import Transport


def test_connections_end_with_the_exchange() -> None:
    """Gloo would keep the sockets of a lane until the collector of cycles comes round."""
    lanes = [create_autospec(Transport, instance=True) for _ in range(2)]
    exchange = Exchange([], InOrder(0), Tracer(), channels=lanes)
    assert not any(lane.close.called for lane in lanes)
    exchange.close()
    assert all(lane.close.called for lane in lanes)


def test_a_round_that_failed_tells_nothing_of_the_wire() -> None:
    averager, times = MagicMock(), RoundTimes()
    averager.run.side_effect = PeerError("rank 1 has died", [1])
    exchange = Exchange([averager], InOrder(1), Tracer(), times=times)
    exchange.begin(Round(number=1))
    exchange.end()
    with pytest.raises(PeerError, match="rank 1 has died"):
        exchange.wait()
    exchange.close()
    assert times.count == 0


def test_what_is_in_the_midst_of_a_round_when_an_engine_closes_does_not_come_later() -> None:
    """A roll that succeeds late would change weights in the next world."""
    background, goes_on = Background("rolls"), threading.Event()
    future = background.submit(lambda: goes_on.wait(10))
    threading.Timer(0.05, goes_on.set).start()
    background.close()
    assert future.done()


def test_a_lane_that_is_left_behind_does_not_abort_a_program_that_ends() -> None:
    program = textwrap.dedent("""
        import threading
        import time
        from datetime import timedelta
        from unittest.mock import MagicMock
        import torch.distributed as dist
        from tightwire.architecture.round import Round
        from tightwire.runtime.exchange import Exchange
        from tightwire.runtime.trace import Tracer
        from tightwire.schedule import InOrder

        class Ending:
            def __del__(self):
                time.sleep(2.0)

        def run(now):
            begun.set()
            store.wait(["never"], timedelta(seconds=2.2))

        ending, begun, store, averager = Ending(), threading.Event(), dist.HashStore(), MagicMock()
        averager.run.side_effect = run
        exchange = Exchange([averager], InOrder(1), Tracer())
        exchange.begin(Round(number=1))
        exchange.end()
        begun.wait()
        exchange.close()
        print("ends")
    """)
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=200, check=False
    )
    assert (ran.returncode, ran.stdout) == (0, "ends\n"), ran.stderr


def test_equal_sizes_do_not_tell_latency_from_bandwidth() -> None:
    wire = fit([2**20, 2**20, 2**20 - 64], [0.013, 0.0131, 0.0129])
    assert wire.latency_s < 1e-4
    assert wire.seconds(2**20) == pytest.approx(0.013, rel=0.02)
