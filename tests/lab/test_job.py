"""Jobs on loopback: how output, failures and endings are handled, whatever the hosts are."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import create_autospec

import pytest

from tightwire.errors import LabError
from tightwire.lab import Lab, OutputLine, Result, Topology
from tightwire.lab.job import LabJob, stands_still
from tightwire.lab.spare import Spare

Run = Callable[..., tuple[Result, list[OutputLine]]]


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(Topology(workers=3), mode="shaped", grace_s=0.2) as lab:
        yield lab


def shell(lab: Lab, script: str, timeout_s: float | None = 20) -> tuple[Result, list[OutputLine]]:
    lines: list[OutputLine] = []
    return lab.run(["sh", "-c", script], on_line=lines.append, timeout_s=timeout_s), lines


def test_success(lab: Lab) -> None:
    result, lines = shell(lab, "true")
    assert result.ok
    assert result.exit_code == 0
    assert result.exit_codes == (0, 0, 0)
    assert lines == []


def test_lines_come_in_order_with_their_rank_and_stream(lab: Lab) -> None:
    _, lines = shell(lab, "echo a$RANK; echo; echo b >&2; printf 'no end'")
    for rank in range(3):
        assert [li.text for li in lines if li.rank == rank and li.stream == "stdout"] == [
            f"a{rank}",
            "",
            "no end",
        ]
        assert [li.text for li in lines if li.rank == rank and li.stream == "stderr"] == ["b"]


def test_odd_bytes_and_progress_bars_are_lines(lab: Lab) -> None:
    _, lines = shell(lab, r"printf '\377\n10%%\r20%%\r'; [ $RANK = 0 ] || exec >&-")
    assert [line.text for line in lines if line.rank == 0] == ["\ufffd", "10%", "20%"]


def test_much_output_is_not_lost(lab: Lab) -> None:
    _, lines = shell(lab, "seq 20000")
    assert [int(line.text) for line in lines if line.rank == 2] == list(range(1, 20001))


def test_standard_input_is_empty(lab: Lab) -> None:
    assert shell(lab, "cat")[0].ok


@pytest.mark.parametrize(
    ("how", "code", "says"),
    [("exit 3", 3, "exit code 3"), ("kill -SEGV $$", 139, "SIGSEGV"), ("kill -KILL $$", 137, "SIGKILL")],
)
def test_the_first_failure_decides_and_ends_the_others(lab: Lab, how: str, code: int, says: str) -> None:
    result, _ = shell(lab, f"if [ $RANK = 1 ]; then {how}; fi; sleep 60")
    assert (result.first_failed, result.exit_code) == (1, code)
    assert result.exit_codes[0] == result.exit_codes[2] == -signal.SIGTERM
    assert "rank 1" in result.describe()
    assert says in result.describe()


def test_others_may_finish_within_the_grace(lab: Lab) -> None:
    result, lines = shell(lab, "[ $RANK != 2 ] || exit 4; sleep 0.05; echo done")
    assert result.exit_codes == (0, 0, 4)
    assert [line.text for line in lines] == ["done", "done"]


def test_workers_that_ignore_sigterm_are_killed(lab: Lab) -> None:
    result, _ = shell(lab, "[ $RANK != 0 ] || exit 5; trap '' TERM; while :; do sleep 0.1; done")
    assert result.exit_codes == (5, -signal.SIGKILL, -signal.SIGKILL)


def test_time_over(lab: Lab) -> None:
    result, _ = shell(lab, "sleep 60", timeout_s=0.2)
    assert result.timed_out
    assert result.exit_code == 124
    assert "in time" in result.describe()


def test_a_time_that_never_comes_is_waited_for_as_none(lab: Lab) -> None:
    for timeout_s in (float("inf"), 1e11):
        assert shell(lab, "true", timeout_s=timeout_s)[0].ok
    with Lab(Topology(workers=2), mode="shaped", grace_s=float("inf")) as patient:
        assert shell(patient, 'if [ "$RANK" = 1 ]; then exit 3; fi; sleep 0.3')[0].exit_codes == (0, 3)


def test_an_interrupt_that_this_process_outlives_is_no_good_end(lab: Lab) -> None:
    told: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda signum, frame: told.append(signum))
    try:
        result = lab.run(
            ["sh", "-c", "echo; exec sleep 60"], on_line=lambda line: os.kill(os.getpid(), signal.SIGTERM)
        )
    finally:
        signal.signal(signal.SIGTERM, before)
    assert told == [signal.SIGTERM]
    assert result.first_failed is None
    assert not result.ok
    assert result.exit_code == 128 + signal.SIGTERM
    assert "interrupted" in result.describe()


def test_an_interrupt_that_this_process_ignores_is_ignored(lab: Lab) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        result = lab.run(
            ["sh", "-c", "echo; sleep 0.8"], on_line=lambda line: os.kill(os.getpid(), signal.SIGINT)
        )
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.ok


def test_what_a_worker_left_behind_ends_with_it(lab: Lab) -> None:
    start_s = time.monotonic()
    result, _ = shell(lab, "sleep 60 & exit 0")
    assert result.ok
    assert time.monotonic() - start_s < 30


def test_a_failing_callback_ends_the_workers(lab: Lab) -> None:
    with pytest.raises(ZeroDivisionError):
        lab.run(["sh", "-c", "echo; sleep 60"], on_line=lambda line: 1 // 0)
    assert shell(lab, "true")[0].ok


def test_faults_reach_a_running_worker(lab: Lab) -> None:
    def strike(line: OutputLine) -> None:
        lab.kill(line.rank) if line.rank == 1 else lab.freeze(line.rank)

    result = lab.run(["sh", "-c", "echo; sleep 60"], on_line=strike)
    assert result.first_failed == 1
    assert set(result.exit_codes) == {-signal.SIGKILL}


def test_a_fault_may_come_just_as_the_command_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    lab, job = Lab(Topology(workers=1)), create_autospec(LabJob, instance=True)
    seen = itertools.cycle([job, None])
    monkeypatch.setattr(Lab, "_job", property(lambda self: next(seen)), raising=False)
    lab.kill(0)
    next(seen)
    lab.restart_no_more()
    job.signal.assert_called_once_with(0, signal.SIGKILL)
    job.restart_no_more.assert_called_once_with()


def test_a_frozen_worker_can_go_on(lab: Lab) -> None:
    def freeze_and_thaw(line: OutputLine) -> None:
        lab.freeze(line.rank)
        lab.thaw(line.rank)

    assert lab.run(["sh", "-c", "echo; sleep 0.1"], on_line=freeze_and_thaw).ok


def test_who_is_frozen_stands_still(lab: Lab) -> None:
    """Else a child that is being forked could stay stopped when its worker goes on."""
    still = []

    def freeze_and_look(line: OutputLine) -> None:
        for _ in range(30):
            lab.freeze(line.rank)
            still.append(stands_still(int(line.text)))
            lab.thaw(line.rank)

    forks = "echo $$; i=0; while [ $i -lt 60 ]; do /bin/true; i=$((i+1)); done; sleep 1"
    assert lab.run(["sh", "-c", forks], on_line=freeze_and_look, timeout_s=60).ok
    assert all(still)


def test_misuse_is_refused(lab: Lab) -> None:
    with pytest.raises(LabError, match="no such program"):
        lab.run(["no-such-program"])
    with pytest.raises(LabError, match="Write: python train"):
        lab.run(["train.py"])
    with pytest.raises(LabError, match="no command"):
        lab.run([])
    with pytest.raises(LabError, match="runs no command"):
        lab.kill(0)
    with pytest.raises(LabError, match="no link to cut"):
        lab.cut(0)
    with pytest.raises(LabError, match="runs a command already"):
        lab.run(["sh", "-c", "echo"], on_line=lambda line: shell(lab, "true") and None)
    with pytest.raises(LabError, match="rank 3"):
        lab.run(["sh", "-c", "echo; sleep 60"], on_line=lambda line: lab.kill(3))


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan")])
def test_a_time_that_is_none_is_refused(lab: Lab, timeout_s: float) -> None:
    with pytest.raises(LabError, match="write a timeout above 0"):
        shell(lab, "true", timeout_s=timeout_s)
    with pytest.raises(LabError, match="0 seconds or more"):
        Lab(Topology(workers=1), grace_s=timeout_s or -1.0)


def test_rates_that_cannot_change_are_refused_before_anything_runs(lab: Lab) -> None:
    ran: list[OutputLine] = []
    for at_s, rate, says in (
        (60.0, 1e6, "mode shaped"),
        (-1.0, 1e6, "-1 seconds"),
        (60.0, 1.0, "a link can"),
    ):
        with pytest.raises(LabError, match=says):
            lab.run(["echo"], on_line=ran.append, rates_at=[(at_s, rate)])
    assert not ran


def test_a_lab_is_used_inside_its_block() -> None:
    with pytest.raises(LabError, match="with Lab"):
        Lab(Topology(workers=1)).run(["true"])


def test_unknown_modes_are_listed() -> None:
    with pytest.raises(LabError, match="Known: auto, root, userns, shaped"):
        Lab(Topology(workers=1), mode="magic")  # type: ignore[arg-type]


def test_shaped_cannot_emulate_nodes() -> None:
    with pytest.raises(LabError, match="nodes"), Lab(Topology(workers=4, nodes=2), mode="shaped"):
        pass


def test_a_missing_tool_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tightwire.lab.namespaces.shutil.which", lambda name, path=None: None)
    with pytest.raises(LabError, match="iproute2"), Lab(Topology(workers=2), mode="userns"):
        pass
    with Lab(Topology(workers=2, rate_bytes_per_s=1e6), mode="auto") as lab:
        assert lab.mode == "shaped"
        assert not lab.shapes_everything
        assert "iproute2" in lab.describe()
        assert "not shaped, not compared" in lab.describe()


def test_elastic_workers_that_are_killed_are_started_anew(lab: Lab, tmp_path: Path) -> None:
    script = f"[ $RANK = 1 ] && mkdir {tmp_path}/once 2>/dev/null && kill -9 $$; echo $TORCHFT_LIGHTHOUSE"
    lines: list[OutputLine] = []
    result = lab.run(["sh", "-c", script], on_line=lines.append, timeout_s=60, elastic=True)
    assert result.ok
    assert len({line.text for line in lines if line.text.startswith("http://127.0.0.1:")}) == 1
    assert sorted(line.rank for line in lines if line.stream == "stdout") == [0, 1, 2]
    assert (tmp_path / "once").exists()


def test_a_killed_worker_starts_anew_from_the_spare_on_its_own_host() -> None:
    script = (
        "import os, sys; print(os.environ['RANK'], 'tightwire.lab' in sys.modules, sys.argv[1:], flush=True)"
    )
    argv = [sys.executable, "-W", "ignore", "-c", script + "; sys.stdin.read(); os._exit(0)", "x"]
    once = [argv[0], "-c", script + "; import time; time.sleep(60)", "x"]
    lines: list[str] = []
    with Lab(Topology(workers=2), mode="shaped") as lab:
        hosts = lab._open
        ranks = [dict(os.environ, RANK=str(rank)) for rank in range(2)]

        def on_line(line: OutputLine) -> None:
            lines.append(line.text)
            if line.text == "1 False ['x']":
                while job._spare is None or not job._spare.is_ready:
                    time.sleep(0.01)
                job.signal(1, signal.SIGKILL)

        job = LabJob(
            hosts,
            [hosts.command(0, argv), hosts.command(1, once)],
            ranks,
            0.2,
            restarts=True,
            spare=lambda: Spare(hosts, argv, ranks[0], modules=("json",)),
        )
        assert job.wait(on_line, 60).ok
    assert sorted(lines) == ["0 False ['x']", "1 False ['x']", "1 True ['x']"]
