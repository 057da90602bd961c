"""A job that is started anew goes on, to the bit, from what hosts held in memory."""

from __future__ import annotations

import io
import itertools
import random
import shutil
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.runtime.training import adam, job, same, values
from tightwire import _attach
from tightwire.errors import AttachError, PeerError
from tightwire.runtime.keeping import Handover, plan_recall
from tightwire.runtime.randomness import random_state, set_random_state
from tightwire.transport import Transport, run_threads
from tightwire.transport.seal import Seal
from tightwire.transport.shelf import Shelf, Snap

STEPS = 9


class Attempts:
    """Runs a job of two workers again and again, each on its host."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, place: Path, hosts: Sequence[str]) -> None:
        self._here, self._place, self._hosts = threading.local(), place, hosts
        monkeypatch.setattr(_attach, "shelf", lambda: self._here.shelf)
        monkeypatch.setattr(_attach, "_attached", itertools.repeat(0))

    def forget(self) -> None:
        """Is another job from now on."""
        for host in set(self._hosts):
            shutil.rmtree(self._place / host)

    def run(
        self, plan: str, *, ends_at: int = STEPS, secret: str = "of the job", workers: int = 2
    ) -> list[tuple[int, list[Tensor]]]:
        """Returns after which step each rank began, and its parameters in the end."""

        def train(transport: Transport) -> tuple[int, list[Tensor]]:
            place = self._place / self._hosts[transport.rank]
            self._here.shelf = Shelf(place, Seal(secret, ""), keeper_of=None)
            began, ended = 0, list[Tensor]()
            with suppress(PeerError), job(transport, plan, optimizer=adam, remember=2) as j:
                began = j.run.step
                while j.run.step < ends_at:
                    j.step(j.run.step)
                if ends_at < STEPS:
                    transport.barrier()
                    raise PeerError("another worker was killed", [])
                j.run.finish()
                ended = values(j.model)
            return began, ended

        return run_threads(workers, train)


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Attempts:
    return Attempts(monkeypatch, tmp_path, ["a", "b"])


@pytest.mark.parametrize("plan", ["bsp/allreduce:ring/int8+ef", "local:3", "bsp/allreduce/none/dear"])
def test_started_anew_equals_not_ended(attempts: Attempts, plan: str) -> None:
    whole = attempts.run(plan)
    attempts.forget()
    attempts.run(plan, ends_at=7)
    again = attempts.run(plan)
    assert [began for began, _ in again] == [6, 6]
    assert all(same(a, b) for (_, a), (_, b) in zip(whole, again, strict=True))


def test_a_host_that_is_replaced_gets_what_the_next_one_held(attempts: Attempts, tmp_path: Path) -> None:
    whole = attempts.run("bsp/allreduce/topk:0.2+ef")
    attempts.forget()
    attempts.run("bsp/allreduce/topk:0.2+ef", ends_at=7)
    shutil.rmtree(tmp_path / "b")
    again = attempts.run("bsp/allreduce/topk:0.2+ef")
    assert [began for began, _ in again] == [6, 6]
    assert all(same(a, b) for (_, a), (_, b) in zip(whole, again, strict=True))


def test_what_another_job_sealed_is_taken_up_by_nobody(attempts: Attempts) -> None:
    attempts.run("bsp", ends_at=7)
    assert [began for began, _ in attempts.run("bsp", secret="of another")] == [0, 0]


def test_nothing_is_recalled_of_another_plan(attempts: Attempts) -> None:
    attempts.run("bsp", ends_at=7)
    assert [began for began, _ in attempts.run("local:2")] == [0, 0]


def test_snapshots_of_another_number_of_workers_are_told(
    attempts: Attempts, caplog: pytest.LogCaptureFixture
) -> None:
    attempts.run("bsp", ends_at=5)
    assert attempts.run("bsp", workers=1)[0][0] == 0
    assert "started anew with 1 workers, and hosts hold snapshots of 2" in caplog.text


def test_every_generator_goes_on() -> None:
    def draw() -> list[float]:
        return [torch.rand(()).item(), np.random.rand(), np.random.randn(), random.random()]

    at, file = torch.device("cpu"), io.BytesIO()
    torch.save(random_state(at), file)
    drawn = draw()
    file.seek(0)
    set_random_state(torch.load(file, weights_only=True), at)
    assert draw() == drawn


RUN = "0123456789abcdef"


def test_the_newest_step_of_which_all_snapshots_are_held() -> None:
    def name(rank: int, step: int) -> str:
        return Snap(RUN, rank, step).name

    first = {name(0, 8): 10, name(0, 6): 11, name(1, 6): 12}
    assert plan_recall([first, {}], RUN) == (
        6,
        [Handover(Snap(RUN, 0, 6), 0, 0, 11), Handover(Snap(RUN, 1, 6), 0, 1, 12)],
    )
    assert plan_recall([first, {"junk": 1, "f" * 16 + "-1-8": 1}], RUN)[0] == 6
    assert plan_recall([{name(0, 8): 10}, {}], RUN) == (None, [])


def test_a_full_memory_leaves_nothing_and_training_goes_on(
    attempts: Attempts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def write(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[:7])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write)
    assert [began for began, _ in attempts.run("bsp")] == [0, 0]
    assert [path for host in "ab" for path in (tmp_path / host).iterdir()] == []


def test_what_a_worker_that_was_killed_had_begun_to_write_does_not_keep_its_memory(tmp_path: Path) -> None:
    shelf, mine, others = (
        Shelf(tmp_path / "host", Seal("", ""), keeper_of=None),
        Snap(RUN, 0, 4),
        Snap(RUN, 1, 4),
    )
    for snap in (mine, others):
        (tmp_path / "host" / f"{snap.name}.part").write_bytes(b"the first half of it")
    shelf.put(Snap(RUN, 0, 6), b"whole")
    left = sorted(path.name for path in (tmp_path / "host").iterdir())
    assert left == [Snap(RUN, 0, 6).name, f"{others.name}.part"]


@pytest.mark.parametrize(
    ("plan", "every", "match"),
    [
        ("bsp/gossip:ring", 1, "they do not"),
        ("asp/ps", 1, "they do not"),
        ("auto", 1, "with plan auto"),
        ("bsp", -1, "a number of steps from 1"),
    ],
)
def test_what_cannot_be_remembered_is_refused(plan: str, every: int, match: str) -> None:
    def train(transport: Transport) -> None:
        with job(transport, plan, remember=every):
            pass

    with pytest.raises(AttachError, match=match):
        run_threads(2, train)
