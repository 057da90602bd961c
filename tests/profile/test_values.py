import dataclasses
import pathlib
from typing import Any

import pytest

from tightwire.answers import Sender
from tightwire.errors import FileError
from tightwire.plan import Plan
from tightwire.profile import CodecCost, ParameterProfile, Profile

GOOD = Profile.uniform(layers=3, numel_per_layer=1000, forward_s=0.1, backward_s=0.3, optimizer_s=0.01)


def test_file_round_trip(tmp_path: pathlib.Path) -> None:
    cost = CodecCost(compression="topk:0.01", encode_s_per_element=1e-9, decode_s_per_element=1e-10)
    profile = dataclasses.replace(GOOD, codecs=(cost,), noise=0.03)
    profile.write(tmp_path / "profile.yaml")
    assert Profile.read(tmp_path / "profile.yaml") == profile


def test_uniform_layers_become_ready_one_after_another() -> None:
    assert [p.ready_s for p in GOOD.parameters] == pytest.approx([0.1, 0.2, 0.3])
    assert GOOD.num_bytes == 12_000
    assert GOOD.compute_s == pytest.approx(0.41)


@pytest.mark.parametrize(
    "change",
    [
        {"forward_s": -1.0},
        {"backward_s": float("nan")},
        {"noise": -0.1},
        {"contention": 0.5},
        {"parameters": ()},
        {"parameters": (GOOD.parameters[0], GOOD.parameters[0])},
        {"backward_s": 0.2},
    ],
    ids=lambda change: next(iter(change)),
)
def test_impossible_values_are_refused_by_field(change: dict[str, Any]) -> None:
    with pytest.raises(FileError, match=next(iter(change))):
        dataclasses.replace(GOOD, **change)


def test_missing_numel_is_named(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "profile.yaml"
    path.write_text("forward_s: 1\nbackward_s: 1\noptimizer_s: 1\nparameters: [{name: a, ready_s: 0.5}]\n")
    with pytest.raises(FileError, match=r"parameters\.0\.numel"):
        Profile.read(path)


def test_what_was_not_timed_costs_what_its_nearest_relative_does() -> None:
    """By name and bytes, else by kind, else by passes over memory; and a sentence says what was assumed."""
    timed = {"topk:0.1": 9e-9, "topk:0.001": 5e-9, "powersgd:8": 8e-9, "int8": 1e-9}
    costs = [
        CodecCost(compression=t, encode_s_per_element=s, decode_s_per_element=1e-10, fixed_s=1e-6)
        for t, s in timed.items()
    ]
    profile = dataclasses.replace(GOOD, codecs=tuple(costs))
    for text, encode_s, said in (
        ("topk:0.1", 9e-9, ""),
        ("topk:0.002", 5e-9 + 0.001 * 2 * 5e-10, "that of topk:0.001, but for the bytes of a message"),
        ("topk:0.06", 9e-9 - 0.04 * 2 * 5e-10, "that of topk:0.1, but for the bytes of a message"),
        ("powersgd:2", 2e-9, "0.25 × that of powersgd:8, as its bytes are"),
        ("int4", 1e-9 - 5e-10 / 8, "that of int8, but for the bytes of a message"),
        ("zstd", 8e-9, "that of 16 passes over memory each way"),
        ("none", 0.0, ""),
    ):
        asked = sender(text)
        assert profile.codec_cost(asked).encode_s_per_element == pytest.approx(encode_s, rel=0.03), text
        assert profile.costs_unmeasured(asked).partition(", taken to be ")[2] == said
    assert profile.codec_cost(sender("powersgd:2")).fixed_s == 1e-6


def test_a_parameter_has_a_unit_in_every_time() -> None:
    names = {f.name for f in dataclasses.fields(ParameterProfile)}
    assert names == {"name", "numel", "itemsize", "ready_s", "shape"}


def sender(text: str) -> Sender:
    return Plan.parse(f"bsp/allreduce/{text}").sender


def test_what_has_no_kernels_on_a_device_is_priced_on_its_host_with_a_copy_each_way() -> None:
    cpu = Profile.uniform(layers=1, numel_per_layer=1, forward_s=0.1, backward_s=0.2)
    gpu = dataclasses.replace(cpu, pass_s_per_element=1e-11, copy_s_per_byte=1 / 12e9)
    on_cpu, on_gpu = (p.codec_cost(sender("zstd")).encode_s_per_element for p in (cpu, gpu))
    assert on_cpu == 16 * 5e-10
    assert on_gpu == pytest.approx(16 * 5e-10 + 4 / 12e9)
    assert gpu.codec_cost(sender("int8")).encode_s_per_element == pytest.approx(2e-11)
