from __future__ import annotations

import os
import socket
import time
from contextlib import suppress

import pytest

from tightwire.transport.traffic import CAN_TELL, Connection, Movement, connections_to


@pytest.mark.skipif(not CAN_TELL, reason="only Linux tells")
def test_the_kernel_tells_what_moved_and_what_waits() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as sender:
        sender.connect(server.getsockname())
        with server.accept()[0] as receiver:
            mine, its = (os.fstat(s.fileno()).st_ino for s in (sender, receiver))
            assert mine not in connections_to({"127.0.0.2"})
            sender.sendall(b"x" * 100_000)
            received = 0
            while received < 100_000:
                received += len(receiver.recv(100_000))
            time.sleep(0.05)  # its acknowledgement
            before = connections_to({"127.0.0.1"})
            assert (before[its].moved, before[mine].queued) == (100_000, 0)
            assert before[mine].moved >= 100_000
            sender.setblocking(False)
            with suppress(BlockingIOError):
                while sender.send(b"x" * 100_000):
                    pass
            assert connections_to({"127.0.0.1"})[mine].queued > 0


def test_beats_are_no_traffic_and_a_new_connection_has_not_moved_what_it_moved_before() -> None:
    seen: list[dict[int, Connection]] = [{1: Connection(0, 0)}]
    movement = Movement(lambda: seen[-1])
    for second in range(5):
        seen.append({1: Connection(500 * second, 0)} | ({2: Connection(10**6, 0)} if second > 2 else {}))
        movement.look(float(second))
    assert movement.is_still(4.0, for_s=4.0)
    assert not movement.is_still(4.0, for_s=4.5)
    seen.append({1: Connection(2000, queued=1)})
    movement.look(5.0)
    assert movement.moves(5.0, within_s=1.0)
    assert not movement.is_still(5.5, for_s=1.0)
    movement.forget()
    assert not movement.is_still(99.0, for_s=1.0)
