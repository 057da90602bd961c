"""The script that GPUs are measured with, walked on the traced device."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from tests.traced.training import TRACED
from tightwire.bench.gpu import machine, page
from tightwire.bench.gpu_parts import EMULATED, GpuPart, kernels_right, world_of_one


@pytest.mark.parametrize("part", [kernels_right, world_of_one])
def test_parts_hold_on_the_traced_device(part) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    TRACED.restart()
    found = part(EMULATED)
    assert found.ok, found.said
    assert not TRACED.races


def test_a_page_says_what_was_emulated_and_what_does_not_hold() -> None:
    parts = [asdict(replace(GpuPart(name="", ok=False, said="a | b"), name="overlap"))]
    text = page({"machine": machine(EMULATED), "emulated": True, "parts": parts})
    assert "no speed is measured" in text
    assert "| overlap | NO | a / b | 0 |" in text
