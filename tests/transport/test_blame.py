from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any

import pytest

from tightwire.errors import PeerError
from tightwire.transport.blame import (
    RankObserved,
    Reason,
    Verdict,
    Wait,
    accuse,
    describe,
    judge_gone,
    judge_late,
    name_ranks,
)


@pytest.mark.parametrize(
    ("peers", "observed", "expected"),
    [
        ([1], {"waits": {1: [2], 2: []}}, None),
        ([1], {"waits": {1: [2]}, "silent": [2]}, Verdict((2,), "silent")),
        ([1], {"waits": {1: [2]}, "silent": [3]}, None),  # nobody waits for it
        ([1], {"waits": {1: [2]}, "left": {2: "OSError: disk"}}, Verdict((2,), "failed", "OSError: disk")),
        ([1], {"left": {1: "FileError: no such file."}}, Verdict((1,), "failed", "FileError: no such file")),
        ([1, 2], {"left": {2: ""}, "dead": [1]}, Verdict((1,), "dead")),  # one left because another died
        ([1, 2, 3], {"left": {2: "OSError: x"}, "dead": [1], "silent": [3]}, Verdict((2,), "failed", "OSError: x")),
        ([1], {"left": {1: ""}, "dead": [1]}, Verdict((1,), "left")),
    ],
)  # fmt: skip
def test_who_is_gone(peers: list[int], observed: Mapping[str, Any], expected: Verdict | None) -> None:
    assert judge_gone(peers, RankObserved(**observed)) == expected


def test_who_is_late() -> None:
    places = {2: "train.py:45 in evaluate"}
    late = judge_late([1], RankObserved(waits={0: [1], 1: [2], 2: []}, places=places))
    assert late == Verdict((2,), "late", "train.py:45 in evaluate")
    everybody = judge_late([1, 2, 3], RankObserved(waits={0: [1, 2, 3], 1: [0, 2, 3], 2: [], 3: [0, 1, 2]}))
    assert everybody == Verdict((2,), "late")
    assert judge_late([1], RankObserved(waits={0: [1], 1: [2], 2: [0]})) == Verdict((0, 1, 2), "cycle")


WAIT = Wait(frozenset({2}), "to receive 4.0 MB, tag 3")


@pytest.mark.parametrize(
    ("reason", "sentence"),
    [
        ("dead", "rank 2 died while this worker waited to receive 4.0 MB, tag 3: its process has ended without a word"),
        ("silent", "rank 2 does not answer while this worker waited to receive 4.0 MB, tag 3; it has been stopped, or"),
        ("late", "rank 2 is alive but did not reach this point within 30 s while this worker waited to receive 4.0 MB"),
        ("left", "rank 2 left while this worker waited to receive 4.0 MB, tag 3. Every worker must run the same"),
        ("broken", "rank 2 is alive, but a connection to it broke while this worker waited to receive 4.0 MB, tag 3."),
    ],
)  # fmt: skip
def test_the_sentence_says_who_what_and_what_to_do(reason: Reason, sentence: str) -> None:
    error = accuse(Verdict((2,), reason), waiting=WAIT, deadline_s=30.0, rank=0)
    assert str(error).startswith(sentence)
    assert error.ranks == (2,)


def test_nobody_accuses_itself() -> None:
    for reason in ("silent", "dead", "late", "given-up", "broken"):
        error = accuse(Verdict((2,), reason), waiting=WAIT, deadline_s=30.0, rank=2)
        assert error.ranks == ()
        assert "this one (rank 2)" in str(error)
    both = accuse(Verdict((0, 2), "cycle"), waiting=WAIT, deadline_s=30.0, rank=2)
    assert both.ranks == (0,)
    assert str(both).startswith("ranks 0 and 2 wait for each other")


def test_names() -> None:
    assert [name_ranks([1]), name_ranks([1, 2]), name_ranks([1, 2, 5])] == [
        "rank 1",
        "ranks 1 and 2",
        "ranks 1, 2 and 5",
    ]
    assert describe("send", 4_000_000, 3) == "to send 4.00 MB, tag 3"


def test_an_error_that_blames_can_be_sent_to_another_process() -> None:
    error = pickle.loads(pickle.dumps(PeerError("rank 1 died", [1])))
    assert (str(error), error.ranks) == ("rank 1 died", (1,))
