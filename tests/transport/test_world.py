from __future__ import annotations

import pytest

import tightwire.transport as transport
from tightwire.errors import TransportError
from tightwire.transport.launch import Launch

COMPLETE = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}


def test_no_launcher_is_a_world_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in COMPLETE:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(TransportError, match=r"call tightwire\.init\(\) first"):
        transport.current()
    joined = transport.init(deadline_s=7.0)
    assert (joined.rank, joined.size, joined.deadline_s) == (0, 1, 7.0)
    assert transport.init() is joined is transport.current()
    transport.shutdown()
    transport.shutdown()


def test_a_launcher_is_read() -> None:
    assert Launch.from_environment({}) is None
    assert Launch.from_environment(COMPLETE) == Launch(
        rank=1, size=2, host="10.0.0.1", port=29500, agent_hosts=False
    )
    assert Launch.from_environment({**COMPLETE, "TORCHELASTIC_USE_AGENT_STORE": "True"}).agent_hosts


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"MASTER_ADDR": ""}, "but not MASTER_ADDR"),
        ({"RANK": "first"}, "whole numbers: .*first"),
        ({"RANK": "2"}, "RANK is 2 in a world of 2: it must be from 0 to 1"),
    ],
)
def test_a_broken_launcher_is_refused(change: dict[str, str], message: str) -> None:
    with pytest.raises(TransportError, match=message):
        Launch.from_environment({**COMPLETE, **change})
