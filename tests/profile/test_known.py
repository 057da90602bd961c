"""What codecs cost is timed once on a machine."""

from __future__ import annotations

import pathlib
import time

import pytest

from tightwire.profile import CodecCost, known


def test_what_was_timed_here_is_not_timed_again(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[str] = []

    def measure(texts: list[str], numel: int, device: object, *, clock: object) -> tuple[CodecCost, ...]:
        assert clock is time.thread_time  # so that a busy machine changes nothing
        timed.extend(texts)
        senders = [text.partition("+")[0] for text in texts]
        return tuple(
            CodecCost(compression=s, encode_s_per_element=1e-9, decode_s_per_element=2e-9) for s in senders
        )

    monkeypatch.setattr(known, "measure_codecs", measure)
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
