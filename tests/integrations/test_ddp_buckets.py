import pytest
from torch import nn

import tightwire as tw
from tightwire.errors import PlanError


def test_sizes_are_the_plans_buckets_in_the_order_of_backward() -> None:
    model = nn.Sequential(*(nn.Linear(512, 512, bias=False) for _ in range(5)))  # 1 MiB each
    assert tw.ddp_buckets("bsp/allreduce/none/fusion:2MiB", model) == [2.0, 2.0, 1.0]
    assert tw.ddp_buckets("bsp/allreduce/none/sequential", model) == [5.0]


def test_merging_takes_a_profile_and_a_cluster() -> None:
    profile = tw.Profile.uniform(layers=6, numel_per_layer=2**18, forward_s=0.1, backward_s=0.2)
    slow, fast = (tw.Cluster.uniform(4, 25e6, latency_s) for latency_s in (10.0, 1e-9))
    plan = "bsp/allreduce/none/mgwfbp"
    assert tw.ddp_buckets(plan, profile=profile, cluster=slow) == [6.0]
    assert len(tw.ddp_buckets(plan, profile=profile, cluster=fast)) > 1
    with pytest.raises(PlanError, match="a profile and a cluster"):
        tw.ddp_buckets(plan, nn.Linear(3, 3))
    with pytest.raises(PlanError, match="needs the model"):
        tw.ddp_buckets("bsp")
