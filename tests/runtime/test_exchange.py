"""What an exchange leaves behind, and what is made of the rounds that were watched."""

from unittest.mock import create_autospec

import pytest

from tightwire.runtime.exchange import Exchange
from tightwire.runtime.observed import fit
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


def test_equal_sizes_do_not_tell_latency_from_bandwidth() -> None:
    wire = fit([2**20, 2**20, 2**20 - 64], [0.013, 0.0131, 0.0129])
    assert wire.latency_s < 1e-4
    assert wire.seconds(2**20) == pytest.approx(0.013, rel=0.02)
