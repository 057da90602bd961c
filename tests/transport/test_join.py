"""What is believed of what lies in the store where workers meet."""

from __future__ import annotations

import pytest
import torch.distributed as dist

from tightwire.errors import PeerError
from tightwire.transport.join import ABSENT, _Meeting
from tightwire.transport.seal import Seal


@pytest.mark.parametrize("forged", ["[0]", "no list", "é"])
def test_a_stranger_cannot_say_who_is_absent(forged: str) -> None:
    store = dist.HashStore()
    store.set(ABSENT, forged)
    seal = Seal("secret", "meeting")
    assert _Meeting(store, 0, 1, seal, "none", 2.0).exchange("here", {"a": 1}) == [{"a": 1}]
    with pytest.raises(PeerError, match="rank 1 did not join within") as caught:
        _Meeting(store, 0, 2, seal, "none", 1.0).exchange("there", {"a": 1})
    assert caught.value.ranks == (1,)
