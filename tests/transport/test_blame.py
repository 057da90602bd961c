from __future__ import annotations

import pytest

from tightwire.transport.blame import Verdict, Wait, accuse, judge, name_bytes, name_ranks


@pytest.mark.parametrize(
    ("waits", "silent", "left", "expected"),
    [
        ({0: [1], 1: [2], 2: []}, [], [], Verdict((2,), "late")),
        ({0: [1], 1: [2]}, [2], [], Verdict((2,), "silent")),
        ({0: [1], 1: [2]}, [2, 5], [], Verdict((2, 5), "silent")),
        ({0: [1], 1: [2]}, [], {2: "OSError: disk"}, Verdict((2,), "left", "OSError: disk")),
        ({0: [1], 1: [2], 2: [0]}, [], [], Verdict((0, 1, 2), "cycle")),
        ({0: [1, 2, 3], 1: [0, 2, 3], 2: [], 3: [0, 1, 2]}, [], [], Verdict((2,), "late")),
    ],
)
def test_judge(
    waits: dict[int, list[int]], silent: list[int], left: dict[int, str], expected: Verdict
) -> None:
    assert judge(0, waits, silent=silent, left=left) == expected


def test_the_sentence_says_who_what_and_what_to_do() -> None:
    error = accuse(
        Verdict((2,), "silent"), waiting=Wait(frozenset({2}), "to receive 4.0 MB, tag 3"), deadline_s=30.0
    )
    assert str(error) == (
        "rank 2 does not answer while this worker waited to receive 4.0 MB, tag 3; it has died, is frozen, or "
        "never reached this point. Look at its log; raise deadline_s, now 30 s, if it is only slow."
    )
    assert error.ranks == (2,)


def test_names() -> None:
    assert [name_ranks([1]), name_ranks([1, 2]), name_ranks([1, 2, 5])] == [
        "rank 1",
        "ranks 1 and 2",
        "ranks 1, 2 and 5",
    ]
    assert [name_bytes(n) for n in (0, 999, 1000, 4_000_000, 5 * 10**9)] == [
        "0 bytes",
        "999 bytes",
        "1.0 kB",
        "4.0 MB",
        "5.0 GB",
    ]
