"""Every ready-made model on every ready-made cluster: numbers that can be, memory before time, verdicts that agree."""

import math
import re

import pytest

from tightwire.cluster.presets import PRESETS, preset
from tightwire.errors import PlanError
from tightwire.planner import recommend
from tightwire.planner.scaling import scaling_of
from tightwire.profile.devices import derive, device
from tightwire.profile.models import MODELS, model_shape
from tightwire.simulate import Prediction, predict


def check_numbers(found: Prediction) -> None:
    times = (found.low_s, found.step_s, found.high_s, found.compute_s, found.exposed_s)
    assert all(math.isfinite(seconds) and seconds >= 0 for seconds in times), found
    assert found.low_s <= found.step_s <= found.high_s
    assert found.exposed_s < found.step_s


@pytest.mark.parametrize("model", MODELS)
def test_plain_all_reduce_is_predicted_or_does_not_fit(model: str) -> None:
    for name, known in PRESETS.items():
        on = device({8: "a100", 4: "a10g"}.get(known.devices, "h100"))
        profile, cluster = derive(model_shape(model), on, 1), preset(name, 4)
        has = cluster.device_memory_bytes
        if has is not None and profile.least_memory_bytes > has:
            with pytest.raises(PlanError, match=r"does not fit.*No time is predicted"):
                predict("bsp", profile, cluster)
        else:
            check_numbers(predict("bsp/allreduce/none/fusion", profile, cluster, quick=True))


def test_the_verdict_agrees_with_the_numbers() -> None:
    ranking = recommend(derive(model_shape("resnet50"), device("rtx3090"), 8), preset("ethernet-1g", 4))
    for row in ranking.rows:
        check_numbers(row)
    scaling = scaling_of(ranking)
    assert scaling.speed_up <= ranking.cluster.workers
    assert ranking.chosen.step_s <= ranking.stock.step_s
    assert ranking.why[0].startswith("Do not") == (scaling.speed_up < 1)
    said = " ".join((*ranking.why, *ranking.details))
    assert not re.search(r"\b(inf|nan|None)\b|\de[+-]\d", said)
    assert max(len(sentence) for sentence in ranking.why) < 500
