"""What a process hears when it was stopped for a while."""

from __future__ import annotations

import threading

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
