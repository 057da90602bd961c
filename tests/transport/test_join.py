"""What is believed of what lies in the store where workers meet."""

from __future__ import annotations

import socket
import subprocess
import sys
import textwrap
import threading
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from tightwire.errors import PeerError, TransportError
from tightwire.transport.blame import Verdict
from tightwire.transport.join import ABSENT, _Meeting, join, rendezvous, within
from tightwire.transport.launch import Launch
from tightwire.transport.seal import Seal
from tightwire.transport.torch_distributed import TorchDistributed, _Pending


@pytest.mark.parametrize("forged", ["[0]", "no list", "é"])
def test_a_stranger_cannot_say_who_is_absent(forged: str) -> None:
    store = dist.HashStore()
    store.set(ABSENT, forged)
    seal = Seal("secret", "meeting")
    assert _Meeting(store, 0, 1, seal, "none", 2.0).exchange("here", {"a": 1}) == [{"a": 1}]
    with pytest.raises(PeerError, match="rank 1 did not join within") as caught:
        _Meeting(store, 0, 2, seal, "none", 1.0).exchange("there", {"a": 1})
    assert caught.value.ranks == (1,)


@pytest.mark.parametrize(("is_host", "named"), [(True, ()), (False, (0,))])
def test_who_keeps_the_store_does_not_accuse_itself(is_host: bool, named: tuple[int, ...]) -> None:
    answered = threading.Event()
    with pytest.raises(PeerError) as caught:
        within(0.05, lambda: answered.wait(5), is_host=is_host)
    answered.set()
    assert caught.value.ranks == named


def test_the_keeper_of_the_store_names_who_is_absent_though_others_are_slow_to_say_that_they_know() -> None:
    store, seal = dist.HashStore(), Seal("", "meeting")
    store.set("here/1", b"none " + seal.close(b"{}"))
    with pytest.raises(PeerError, match="rank 2 did not join") as raised:
        _Meeting(store, 0, 3, seal, "none", 0.5).exchange("here", {})
    assert raised.value.ranks == (2,)


def test_a_thread_left_behind_in_native_code_does_not_abort_a_program_that_ends() -> None:
    """Gloo still connects when the store's host leaves: its thread came back while Python ended, and C++ aborted."""
    program = textwrap.dedent("""
        import time
        from datetime import timedelta
        import torch.distributed as dist
        from tightwire.transport.join import within

        class Ending:
            def __del__(self):
                time.sleep(1.0)

        ending, store = Ending(), dist.HashStore()
        within(0.01, lambda: store.wait(["never"], timedelta(seconds=0.9)))
    """)
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=200, check=False
    )
    assert ran.returncode == 1, ran.stderr
    assert "PeerError: rank 0 does not answer" in ran.stderr


def test_closing_does_not_wait_for_a_collective_that_never_ends() -> None:
    """Gloo's backend waits for its collectives when it ends: one that got a part of a message ends after minutes."""
    may_end, ended = threading.Event(), list[bool]()

    class Stuck:
        def __del__(self) -> None:
            ended.append(may_end.wait(20))

    transport = join(dist.HashStore(), 0, 1, host="127.0.0.1", deadline_s=5)
    transport._gloo, transport._has_abandoned = Stuck(), True
    transport.close()
    assert ended == []
    may_end.set()


def test_a_small_send_that_never_ends_is_left_behind_once_somebody_is_to_blame() -> None:
    """Gloo forgets a send that it takes up when the connection has just closed."""
    may_end = threading.Event()
    never = SimpleNamespace(wait=lambda timeout: may_end.wait(20))
    transport = join(dist.HashStore(), 0, 1, host="127.0.0.1", deadline_s=5)
    send = _Pending(transport, lambda *arguments: never, ([torch.ones(1)], 0, 0), "send")
    transport._liveness._decide(Verdict((0,), "given-up"))
    with pytest.raises(PeerError, match="gave this one"):
        send.wait()
    may_end.set()
    transport.close()


def test_channels_are_connected_with_the_world_as_many_as_any_rank_wants() -> None:
    store, took, worlds = dist.HashStore(), dict[int, list[bool]](), dict[int, TorchDistributed]()

    def work(rank: int) -> None:
        world = join(store, rank, 2, host="127.0.0.1", deadline_s=20, channels=2 * rank, is_one_of_many=True)
        before = world.num_children
        channels = [world.channel() for _ in range(3)]
        took[rank], worlds[rank] = [before == 2, world.num_children == 3, world.num_channels == 3], world
        one = torch.full((1,), float(rank))
        sending = channels[1].isend(one, 1 - rank, 0)
        got = torch.empty(1)
        channels[1].irecv(got, 1 - rank, 0).wait()
        sending.wait()
        took[rank].append(got.item() == 1 - rank)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert took == {0: [True] * 4, 1: [True] * 4}
    assert store.num_keys() == 0
    for world in worlds.values():
        world.close()


@pytest.mark.parametrize(("failures", "deadline_s"), [(2, 30.0), (10**9, 0.3)])
def test_a_name_server_that_cannot_answer_yet_is_waited_for_within_the_deadline(
    monkeypatch: pytest.MonkeyPatch, failures: int, deadline_s: float
) -> None:
    resolve, asked = socket.getaddrinfo, []

    def resolve_late(*where: object, **options: object) -> object:
        asked.append(where)
        if len(asked) <= failures:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return resolve(*where, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", resolve_late)
    launch = Launch(rank=0, size=1, host="127.0.0.1", port=0, agent_hosts=False)
    if failures == 2:
        assert rendezvous(launch, deadline_s=deadline_s) is not None
        return
    with pytest.raises(TransportError, match=r"has no address: .*Temporary failure"):
        rendezvous(launch, deadline_s=deadline_s)
    assert len(asked) > 1
