from __future__ import annotations

import json

import pytest

from tests.command_line import tightwire


def run(*arguments: str) -> tuple[int, str, str]:
    result = tightwire("lab", "run", *arguments)
    return result.code, result.stdout, result.stderr


@pytest.mark.parametrize("mode", ["auto", "shaped"])
def test_json_is_the_last_line(mode: str) -> None:
    script = "echo out $RANK; exit $RANK"
    code, stdout, stderr = run(
        "--workers", "2", "--rate", "200mbit", "--mode", mode, "--json", "sh", "-c", script
    )
    *lines, last = stdout.splitlines()
    assert sorted(lines) == ["[0] out 0", "[1] out 1"]
    report = json.loads(last)
    assert (code, report["exit_code"], report["exit_codes"], report["first_failed"]) == (1, 1, [0, 1], 1)
    assert (report["workers"], report["rate_bytes_per_s"], report["topology"]) == (2, 25e6, "star")
    assert len(report["tx_bytes"]) == len(report["rx_bytes"]) == (0 if report["mode"] == "shaped" else 2)
    assert "rank 1 failed first, with exit code 1" in stderr
    assert f"mode {report['mode']}" in stderr


def test_options_after_the_command_belong_to_it() -> None:
    code, stdout, _ = run("--workers", "1", "--mode", "shaped", "--", "echo", "--workers", "--", "--json")
    assert (code, stdout) == (0, "[0] --workers -- --json\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--workers", "0"], "0 workers"),
        (["--workers", "-2"], "-2 workers"),
        ([], "--workers 4"),
        (["--workers", "2", "--rate", "0"], "is 0 bytes per second"),
        (["--workers", "2", "--rate", "0mbit"], "is 0 bytes per second"),
        (["--workers", "2", "--rate", "fast"], "not a number"),
        (["--workers", "3", "--topology", "nodes=2x2"], "has 4 workers, and 3"),
        (["--topology", "nodes=2x2", "--mode", "shaped"], "mode 'shaped' is not possible here"),
        (["--workers", "2", "--mode", "magic"], "magic"),
        (["--workers", "2", "--scale", "0.01"], "--scale 0.01 is of a cluster file"),
        (["--cluster", "c.yaml", "--rate", "100mbit"], "leave out --workers, --topology and --rate"),
        (["--workers", "2", "--mode", "shaped", "--", "no-such-program"], "no such program"),
    ],
)
def test_bad_input_ends_with_one_sentence(arguments: list[str], says: str) -> None:
    code, stdout, stderr = run(*arguments, *([] if "--" in arguments else ["true"]))
    assert (code, stdout) == (2, "")
    assert says in stderr
    assert "Traceback" not in stderr


def test_help_teaches_by_example() -> None:
    code, stdout, _ = run("--help")
    assert code == 0
    assert "tightwire lab run --workers 4 --rate 200mbit -- python train.py" in stdout


def test_a_log_is_told_of_progress(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tightwire.cli import app

    monkeypatch.setattr(app, "LINE_EVERY_S", 0.0)
    with app.progress(3, "first") as tell:
        tell("one", 1)
        tell("another", 1)
    assert "1 of 3 after 0 s; one\n2 of 3 after 0 s; another" in capsys.readouterr().err
