"""`tightwire study`: a command per study, and what it says of impossible ones."""

from __future__ import annotations

import pytest

from tests.command_line import refused, tightwire


def test_every_study_is_a_command_with_options_of_its_kind() -> None:
    listed = tightwire("study", "--help").stdout
    for name in ("compression", "architecture", "sync", "seven-methods"):
        assert f"\n  {name} " in listed
    assert "compression-race" not in listed
    assert "--seeds" in tightwire("study", "compression", "--help").stdout
    assert "--ratios" in tightwire("study", "seven-methods", "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["nothing"],
            "there is no study 'nothing'; there are compression, architecture, sync, ",
        ),
        (["architecture", "--time-to-loss"], "has no race"),
        # What it has can be copied; of two that it has, one name holds a comma.
        (
            ["architecture", "--scenes", "plain,unlike, no momentum,mars"],
            "no scene 'mars'; it has 'plain', 'unlike', 'unlike, no momentum',",
        ),
        (["seven-methods", "--ratios", "1,fast"], "write numbers separated by commas"),
        (["seven-methods", "--rate", "none"], "with a rate"),
        # Of one name, the page would take the place of the results.
        *(
            ([name, "--out", "trials.md"], "--out trials.md: results are kept as .json")
            for name in ("compression", "race", "layers", "seven-methods")
        ),
    ],
)
def test_bad_input_says_what_there_is(arguments: list[str], says: str) -> None:
    assert says in refused("study", *arguments)
