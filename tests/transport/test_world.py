from __future__ import annotations

import signal
import threading

import pytest

import tightwire.transport as transport
from tightwire.errors import TransportError
from tightwire.transport import Single, lighthouse
from tightwire.transport.launch import Launch, local_rank, local_size

COMPLETE = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}


def test_no_launcher_is_a_world_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in COMPLETE:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(TransportError, match=r"call tightwire\.init\(\) first"):
        transport.current()
    joined = transport.init(deadline_s=7.0)
    assert (joined.rank, joined.size, joined.deadline_s) == (0, 1, 7.0)
    assert transport.init() is joined is transport.current()
    transport.shutdown()
    transport.shutdown()


class Door:
    """In the place of a lighthouse's."""

    def __init__(self, *address: str, **options: object) -> None:
        self.notice = threading.Event()

    def close(self) -> None:
        pass


@pytest.mark.parametrize("is_told", [False, True])
def test_sigterm_is_a_notice_to_leave_until_the_job_is_over(
    monkeypatch: pytest.MonkeyPatch, *, is_told: bool
) -> None:
    """Whoever evaluates after that could not be ended; whoever was told ends with 0, however often it is told."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(lighthouse, "Lighthouse", Door)
    monkeypatch.setenv(lighthouse.VARIABLE, "http://127.0.0.1:1")
    joined = transport.init(elastic=True)
    assert isinstance(joined, Single)
    assert joined.door is not None
    if is_told:
        signal.raise_signal(signal.SIGTERM)
    assert joined.door.notice.is_set() is is_told
    transport.shutdown()
    after = signal.signal(signal.SIGTERM, before)
    assert (after is before) is not is_told


def test_a_launcher_is_read() -> None:
    assert Launch.from_environment({}) is None
    assert Launch.from_environment(COMPLETE) == Launch(
        rank=1, size=2, host="10.0.0.1", port=29500, agent_hosts=False
    )
    assert Launch.from_environment({**COMPLETE, "TORCHELASTIC_USE_AGENT_STORE": "True"}).agent_hosts
    alone = Launch.from_environment({**COMPLETE, "RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": "0"})
    assert alone is not None
    assert alone.port == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"MASTER_ADDR": ""}, "but not MASTER_ADDR"),
        ({"RANK": "first"}, "whole numbers: .*first"),
        ({"RANK": "2"}, "RANK is 2 in a world of 2: it must be from 0 to 1"),
        ({"MASTER_PORT": "0"}, "MASTER_PORT is 0: it must be a port from 1 to 65535"),
        ({"MASTER_PORT": "295000"}, "MASTER_PORT is 295000: it must be a port from 1 to 65535"),
    ],
)
def test_a_broken_launcher_is_refused(change: dict[str, str], message: str) -> None:
    with pytest.raises(TransportError, match=message):
        Launch.from_environment({**COMPLETE, **change})


SRUN = {
    "SLURM_PROCID": "3",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x4)",
}
OPENMPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}


def test_srun_is_read() -> None:
    job = {**SRUN, "SLURM_JOB_ID": "4123456", "SLURM_STEP_NODELIST": "gpu[07-10]"}
    assert Launch.from_environment(job) == Launch(rank=3, size=8, host="gpu07", port=23456, agent_hosts=False)
    assert (local_rank(job), local_size(job)) == (1, 2)
    batch_script = {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "4123456"}
    assert Launch.from_environment(batch_script) is None


def test_mpirun_is_read_or_says_what_to_set() -> None:
    with pytest.raises(
        TransportError, match=r"mpirun started 2 workers .* MASTER_ADDR and MASTER_PORT are not set"
    ):
        Launch.from_environment(OPENMPI)
    launch = Launch.from_environment({**OPENMPI, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"})
    assert launch == Launch(rank=1, size=2, host="10.0.0.1", port=29500, agent_hosts=False)
    assert local_size(OPENMPI) == 2
    assert Launch.from_environment({**OPENMPI, "OMPI_COMM_WORLD_SIZE": "1"}) is None


def test_attempts_of_a_launcher_are_told_apart() -> None:
    launch = Launch.from_environment({**COMPLETE, "TORCHELASTIC_RESTART_COUNT": "2"})
    assert launch is not None
    assert launch.attempt == 2
