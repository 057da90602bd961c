import pytest
from typer.testing import CliRunner

from tightwire.cli.study import app
from tightwire.errors import LabError

RUNNER = CliRunner()


def test_every_study_is_a_command_with_options_of_its_kind() -> None:
    listed = RUNNER.invoke(app, ["--help"]).stdout
    for name in ("compression", "architecture", "sync", "seven-methods", "map"):
        assert f"\n  {name} " in listed
    assert "compression-race" not in listed
    assert "--seeds" in RUNNER.invoke(app, ["compression", "--help"]).stdout
    assert "--ratios" in RUNNER.invoke(app, ["seven-methods", "--help"]).stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["nothing"],
            "there is no study 'nothing'; there are compression, architecture, sync, seven-methods, map",
        ),
        (["architecture", "--time-to-loss"], "has no race"),
        (["seven-methods", "--ratios", "1,fast"], "write numbers by comma"),
        (["seven-methods", "--rate", "none"], "no wire"),
    ],
)
def test_bad_input_says_what_there_is(arguments: list[str], says: str) -> None:
    with pytest.raises(LabError, match=says):
        RUNNER.invoke(app, arguments, catch_exceptions=False)
