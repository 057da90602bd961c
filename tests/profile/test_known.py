"""What codecs cost is timed once on a machine."""

from __future__ import annotations

import pathlib

import pytest

from tightwire.profile import CodecCost, known


def test_what_was_timed_here_is_not_timed_again(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[str] = []

    def measure(texts: list[str], numel: int, device: object) -> tuple[CodecCost, ...]:
        timed.extend(texts)
        senders = [text.partition("+")[0] for text in texts]
        return tuple(
            CodecCost(compression=s, encode_s_per_element=1e-9, decode_s_per_element=2e-9) for s in senders
        )

    monkeypatch.setattr(known, "measure_codecs", measure)
    monkeypatch.setattr(known, "QUIET", float("inf"))
    path = tmp_path / "cache" / "codecs.json"
    first = known.known_costs(["none", "int8+ef"], numel=1000, path=path)
    assert known.known_costs(["int8"], numel=1000, path=path) == first
    costs, _ = known.known_costs(["int8", "bf16"], numel=1000, path=path)
    assert [cost.compression for cost in costs] == ["none", "int8", "bf16"]
    assert timed == ["none", "int8+ef", "bf16"]
    monkeypatch.setattr(known.torch, "get_num_threads", lambda: 99)  # another machine
    known.known_costs(["int8"], numel=1000, path=path)
    path.write_text("{", encoding="utf-8")
    known.known_costs(["int8"], numel=1000, path=path)
    assert timed[3:] == ["int8", "int8"]


def test_times_of_a_busy_machine_are_not_kept(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known, "QUIET", 0.0)
    known.known_costs(["none"], numel=1000, path=tmp_path / "codecs.json")
    assert not any(tmp_path.iterdir())
