"""What a policy declares is what the simulator needs."""

import pytest

from tightwire.catalogue import catalogue, parse_member
from tightwire.simulate.predict import PREDICTORS
from tightwire.sync import Sync


@pytest.mark.parametrize("name", sorted(catalogue("sync")))
def test_every_policy_can_be_priced_by_what_it_declares(name: str) -> None:
    policy = parse_member("sync", catalogue("sync")[name].example or name)
    assert isinstance(policy, Sync)
    assert policy.predictor in PREDICTORS
    assert (policy.deviation == 1.0) is policy.is_bulk
    assert 0 <= policy.awaited(8) <= 8
    assert policy.steps_between_waits >= 1
