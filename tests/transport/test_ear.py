"""What a process hears when it was stopped for a while; and what becomes of its files."""

from __future__ import annotations

import os
import resource
import threading
from pathlib import Path

import pytest

from tightwire.transport.addresses import Address
from tightwire.transport.ear import Ear


class Notes:
    """Notes in which order things happen."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.has_looked = threading.Event()

    def hear(self, data: bytes, sender: Address) -> None:
        self.notes.append(data.decode())

    def note_closed(self, address: Address) -> None:
        self.notes.append("closed")

    def look(self) -> bool:
        self.notes.append("look")
        self.has_looked.set()
        return False


def test_all_that_has_come_is_heard_before_anything_is_judged() -> None:
    ear, sender, hearer = (
        Ear("127.0.0.1", tick_s=0.0, soon_s=0.0),
        Ear("127.0.0.1", tick_s=1, soon_s=1),
        Notes(),
    )
    for number in range(5):
        sender.send(str(number).encode(), ear.address)
    ear.start(hearer)
    assert hearer.has_looked.wait(10)
    ear.close()
    sender.close()
    assert hearer.notes[:6] == ["0", "1", "2", "3", "4", "look"]


def test_a_thread_that_is_left_behind_closes_its_sockets_when_it_ends() -> None:
    """It may hang on Gloo; the descriptors of every world in which it did were never given back."""
    ear, goes_on = Ear("127.0.0.1", tick_s=0.0, soon_s=0.0), threading.Event()

    class Hangs(Notes):
        def look(self) -> bool:
            self.has_looked.set()
            return goes_on.wait(20)

    hearer = Hangs()
    ear.start(hearer)
    assert hearer.has_looked.wait(10)
    thread, sockets = ear._thread, [ear._socket, ear._woken, ear._waking]
    ear.close()
    goes_on.set()
    assert thread is not None
    thread.join(10)
    assert [one.fileno() for one in sockets] == [-1] * 3


def test_who_wakes_one_that_has_closed_writes_to_no_other_file(tmp_path: Path) -> None:
    ear = Ear("127.0.0.1", tick_s=1, soon_s=1)
    ear.close()
    paths = [tmp_path / str(number) for number in range(4)]
    files = [os.open(path, os.O_CREAT | os.O_WRONLY) for path in paths]  # under the numbers that it had
    ear.wake()
    for file in files:
        os.close(file)
    assert [path.read_bytes() for path in paths] == [b""] * 4


def test_one_listens_beside_any_number_of_open_files() -> None:
    """`select` takes file numbers below 1024 alone: a process with more looked dead."""
    before, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most < 1200:
        pytest.skip("this user may not open so many files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before, 1200), most))
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(1030)]
    ear, sender, hearer = (
        Ear("127.0.0.1", tick_s=0.0, soon_s=0.0),
        Ear("127.0.0.1", tick_s=1, soon_s=1),
        Notes(),
    )
    try:
        sender.send(b"here", ear.address)
        ear.start(hearer)
        assert hearer.has_looked.wait(10)
    finally:
        ear.close()
        sender.close()
        for file in files:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, most))
    assert hearer.notes[0] == "here"
