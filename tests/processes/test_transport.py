"""The torch.distributed transport between real processes: the laws, and what it says of those that fail."""

from __future__ import annotations

import socket

import pytest

from tests.workers import Ended, run_processes

RING = """
for _ in range(size):
    b = torch.zeros(100_000)
    r = t.irecv(b, (rank + 1) % size, 3)
    s = t.isend(b.clone(), (rank - 1) % size, 3)
    r.wait()
    s.wait()
"""
# Long enough to be struck in the middle of a message.
LARGE = """
b = torch.zeros(2**24)
for _ in range(100):
    r = t.irecv(b, (rank + 1) % size, 3)
    s = t.isend(torch.zeros_like(b), (rank - 1) % size, 3)
    r.wait()
    s.wait()
"""
SUM = "t.all_reduce(torch.ones(1000)).wait()"
CHAIN = "t.irecv(torch.zeros(3), (rank + 1) % size, 3).wait()"


def run_with_victim(
    victim: int, action: str, wait: str, *, size: int = 3, deadline_s: float = 5.0, late_s: float = 60.0
) -> list[Ended]:
    """Lets rank `victim` act while the others wait; they answer with whom they blame."""
    script = f"""
t = transport.init(deadline_s={deadline_s}, late_s={late_s})
c = t.channel()
if rank == {victim}:
    {action}
try:
    exec({wait!r})
except transport.base.TransportError as error:
    answer(list(getattr(error, "ranks", [])))
    raise
"""
    return run_processes(size, script, check=False, timeout_s=30.0)


def assert_named(ended: list[Ended], victim: int, sentence: str) -> None:
    for rank, end in enumerate(ended):
        if rank != victim:
            assert end.answer == [victim], f"rank {rank}:\n{end.err}"
            assert end.code > 0, f"rank {rank} ended with {end.code}"
            assert f"PeerError: {sentence}" in end.err


@pytest.mark.parametrize("size", [2, 3])
def test_the_laws_hold(size: int) -> None:
    run_processes(
        size,
        """
        from tests.transport.laws import LAWS
        t = transport.init(deadline_s=30)
        for law in LAWS:
            law(t)
        transport.shutdown()
        """,
        full_exit=True,
    )


@pytest.mark.parametrize("wait", [RING, SUM, CHAIN], ids=["ring", "sum", "chain"])
@pytest.mark.parametrize("victim", [0, 2])
def test_a_killed_worker_is_named_by_every_other(victim: int, wait: str) -> None:
    ended = run_with_victim(victim, "os.kill(os.getpid(), signal.SIGKILL)", wait)
    assert_named(ended, victim, f"rank {victim} died")


@pytest.mark.parametrize(("victim", "wait"), [(0, RING), (2, SUM), (1, CHAIN)], ids=["ring", "sum", "chain"])
def test_a_frozen_worker_is_named_by_every_other(victim: int, wait: str) -> None:
    ended = run_with_victim(victim, "os.kill(os.getpid(), signal.SIGSTOP)", wait)
    assert_named(ended, victim, f"rank {victim} does not answer")


@pytest.mark.parametrize(("how", "says"), [("SIGKILL", "died"), ("SIGSTOP", "does not answer")])
def test_who_ends_in_the_middle_of_a_message_is_named(how: str, says: str) -> None:
    """Gloo does not end the wait for the rest of it: neither when the sender is gone, nor when others hang up."""
    strike = f"threading.Timer(0.5, os.kill, (os.getpid(), signal.{how})).start()"
    ended = run_with_victim(1, f"import threading; {strike}", LARGE, deadline_s=2.0)
    assert_named(ended, 1, f"rank 1 {says}")


@pytest.mark.parametrize("plan", ["bsp", "bsp/ps/none/sequential"])
def test_a_run_ends_where_a_large_message_stopped_in_its_middle(plan: str) -> None:
    ended = run_processes(
        3,
        f"""
        import threading, tightwire
        tightwire.init(deadline_s=2)
        model = torch.nn.Linear(4096, 2048)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        if rank == 1:
            threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGSTOP)).start()
        try:
            with tightwire.attach(model, optimizer, {plan!r}):
                while True:
                    optimizer.zero_grad()
                    model(torch.ones(2, 4096)).sum().backward()
                    optimizer.step()
        except tightwire.TightwireError as error:
            answer(list(error.ranks))
            raise
        """,
        check=False,
        timeout_s=30.0,
    )
    assert [ended[0].answer, ended[2].answer] == [[1], [1]]


def test_a_worker_that_raises_is_named_with_its_error() -> None:
    ended = run_with_victim(1, "raise ValueError('bad batch')", RING)
    assert_named(ended, 1, "rank 1 failed")
    assert "ValueError: bad batch. Look at its log." in ended[0].err


@pytest.mark.parametrize("plan", ["bsp", "delayed:1", "local:2", "bsp/ps/none/sequential"])
def test_an_error_inside_an_attached_run_reaches_the_others(plan: str) -> None:
    ended = run_processes(
        3,
        f"""
        import tightwire
        tightwire.init(deadline_s=20)
        model = torch.nn.Linear(8, 2)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        try:
            with tightwire.attach(model, optimizer, {plan!r}):
                for step in range(20):
                    if step == 7 and rank == 1:
                        raise ValueError("bad batch")
                    optimizer.zero_grad()
                    model(torch.ones(2, 8)).sum().backward()
                    optimizer.step()
        except tightwire.TightwireError as error:
            answer([list(error.ranks), str(error)])
            raise
        """,
        check=False,
    )
    for end in (ended[0], ended[2]):
        assert end.answer[0] == [1], end.err
        assert end.answer[1].startswith("rank 1 failed while this worker waited")
        assert "ValueError: bad batch" in end.answer[1]


def test_a_wait_ends_where_the_first_to_know_has_ended_already() -> None:
    """Rank 0 hears of it late: its neighbour, rank 1, has closed its connections by then, and rank 2 is stopped."""
    ended = run_processes(
        3,
        """
        t = transport.init(deadline_s=2)
        if rank == 2:
            os.kill(os.getpid(), signal.SIGSTOP)
        if rank == 0:
            decide = t._liveness._decide
            t._liveness._decide = lambda *found, **how: (time.sleep(1), decide(*found, **how))
            time.sleep(0.7)
        try:
            t.irecv(torch.zeros(3), 2, 3).wait()
        except transport.base.TransportError as error:
            answer(list(error.ranks))
        """,
        check=False,
        timeout_s=20,
    )
    assert [end.answer for end in ended] == [[2], [2], None]


def test_a_death_in_a_collective_of_the_program_s_own_is_named() -> None:
    """Scripts and trainers average losses by torch.distributed, whose error names nobody: within a run, and without."""
    ended = run_processes(
        3,
        """
        t = transport.init(deadline_s=5)
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            dist.all_reduce(torch.zeros(1))
        except RuntimeError as error:
            if rank == 0:
                t.fail(error)
            raise
        """,
        check=False,
    )
    assert [end.code for end in ended] == [1, -9, 1]
    raised = "PeerError: rank 1 died while this worker waited in a collective of the program's own"
    assert raised in ended[0].err
    assert "\nrank 1 died while this worker waited in a collective of the program's own" in ended[2].err


def test_ipv6_alone_is_enough() -> None:
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("this host has no IPv6")
        port = probe.getsockname()[1]
    ended = run_processes(
        2,
        """
        t = transport.init(deadline_s=20)
        c = t.channel()
        c.barrier()
        answer(t._liveness.address[0])
        """,
        join=False,
        env={"MASTER_ADDR": "::1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": ""},
    )
    assert [end.answer for end in ended] == ["::1"] * 2


def test_a_worker_that_leaves_is_named() -> None:
    assert_named(run_with_victim(2, "t.close(); sys.exit(0)", SUM), 2, "rank 2 left")


def test_a_worker_that_is_late_is_named() -> None:
    ended = run_with_victim(1, "time.sleep(6)", SUM, deadline_s=1.0, late_s=3.0)
    assert_named(ended, 1, "rank 1 is alive but did not reach this point within 3 s")
    assert ended[1].answer == []  # nobody accuses itself
    assert "rank 1 is alive but late" in ended[0].err + ended[2].err
    assert "script.py:" in ended[0].err


def test_a_worker_that_is_only_late_is_waited_for() -> None:
    ended = run_with_victim(1, "time.sleep(2.5)", SUM, deadline_s=1.0)
    assert [end.code for end in ended] == [0, 0, 0]
    assert "rank 1 is alive but late: this worker" in ended[0].err + ended[2].err
    assert "; it is in script.py:" in ended[0].err + ended[2].err


def test_a_worker_that_was_frozen_learns_that_it_was_given_up() -> None:
    ended = run_processes(
        3,
        """
        import subprocess
        t = transport.init(deadline_s=1)
        t.barrier()
        if rank == 1:
            subprocess.Popen(["sh", "-c", f"sleep 2; kill -CONT {os.getpid()}"])
            os.kill(os.getpid(), signal.SIGSTOP)
        try:
            t.barrier()
        except transport.base.TransportError as error:
            answer([list(error.ranks), str(error)])
            time.sleep(2)
        """,
        check=False,
    )
    assert [end.answer[0] for end in ended] == [[1], [], [1]]
    assert ended[0].answer[1].startswith("rank 1 does not answer")
    assert ended[1].answer[1].startswith("the other workers gave this one (rank 1) up")


def test_a_worker_that_is_cut_off_blames_nobody() -> None:
    ended = run_processes(
        3,
        """
        t = transport.init(deadline_s=4)
        t.barrier()
        if rank == 1:  # deaf and dumb
            t._liveness._ear.send = lambda data, address: None
        try:
            t.irecv(torch.zeros(3), [1, 2, 1][rank], 3).wait()
        except transport.base.TransportError as error:
            answer([list(error.ranks), str(error)])
        """,
        check=False,
    )
    assert [end.answer[0] for end in ended] == [[1], [], [1]]
    assert (
        ended[1]
        .answer[1]
        .startswith(
            (
                "no other rank answers this one while this worker waited to receive",
                "the other workers gave this one (rank 1) up",
            )
        )
    )


def test_strangers_are_not_heard() -> None:
    """Datagrams that are deeply nested, forged or replayed change nothing."""
    ended = run_processes(
        3,
        """
        import socket
        t = transport.init(deadline_s=4)
        live = t._liveness
        t.barrier()
        if rank == 1:
            stranger = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            forged = b'{"kind": "verdict", "sender": 2, "waits": [0], "reason": "dead"}'
            for data in (b"[" * 60000, b"", b"\\0" * 15, b"x" * 16 + forged, forged):
                stranger.sendto(data, live._inquiry.peers[0])
        time.sleep(0.2)
        t.barrier()
        if rank == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            t.barrier()
        except transport.base.TransportError as error:
            answer(list(error.ranks))
        """,
        check=False,
    )
    assert [end.answer for end in ended] == [[2], [2], None]


def test_another_secret_is_refused() -> None:
    ended = run_processes(
        2,
        """
        os.environ["TIGHTWIRE_SECRET"] = f"secret {rank}"
        transport.init(deadline_s=4)
        """,
        check=False,
    )
    for rank, end in enumerate(ended):
        assert (
            f"MismatchError: what rank {1 - rank} left where the workers meet is not of this job" in end.err
        )


# Before torch.distributed, and where the others already wait in Gloo for all to be connected.
TORCH, CONNECTED = "join.dist.init_process_group", "join.TorchDistributed.barrier"


@pytest.mark.parametrize(
    ("victim", "signal", "at"),
    [(0, "SIGSTOP", TORCH), (1, "SIGKILL", TORCH), (2, "SIGSTOP", CONNECTED)],
)
def test_who_freezes_or_dies_while_joining_is_named(victim: int, signal: str, at: str) -> None:
    ended = run_processes(
        3,
        f"""
        import tightwire.transport.join as join
        if rank == {victim}:
            {at} = lambda *a, **k: os.kill(os.getpid(), signal.{signal})
        try:
            transport.init(deadline_s=3)
        except transport.base.TransportError as error:
            answer(list(error.ranks))
            raise
        """,
        join=False,
        check=False,
        env={"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())},
        timeout_s=50,  # sooner than anything but the deadline ends them: they would have no answer
    )
    assert [end.answer for rank, end in enumerate(ended) if rank != victim] == [[victim]] * 2


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("absent", [0, 2])
def test_a_worker_that_never_joins_is_named(absent: int) -> None:
    ended = run_processes(
        3,
        """
        try:
            transport.init(deadline_s=2)
        except transport.base.TransportError as error:
            answer(list(error.ranks))
            raise
        """,
        ranks=[rank for rank in range(3) if rank != absent],
        join=False,
        check=False,
        env={"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())},
    )
    assert [end.answer for end in ended] == [[absent], [absent]]
    assert all(end.code > 0 for end in ended)


def test_a_taken_port_is_a_clear_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        script = "transport.init(deadline_s=2)"
        (end,) = run_processes(2, script, ranks=[0], join=False, check=False, env=environment)
    assert end.code == 1
    assert f"TransportError: asked to listen at 127.0.0.1:{port} for the other workers; the port" in end.err


def test_a_launched_world_also_initialises_torch_distributed() -> None:
    ended = run_processes(
        2,
        """
        t = transport.init(deadline_s=20)
        total = torch.ones(3)
        dist.all_reduce(total)
        t.all_reduce(total).wait()
        transport.shutdown()
        assert transport.init(deadline_s=20) is not t
        transport.current().barrier()
        answer(total.tolist())
        """,
        join=False,
        env={"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())},
    )
    assert [end.answer for end in ended] == [[4.0] * 3] * 2


def test_channels_leave_nothing_in_the_store() -> None:
    ended = run_processes(
        2,
        """
        t = transport.init()
        t.barrier()
        before = store.num_keys()
        for _ in range(3):
            t.channel().close()
        t.barrier()
        answer(store.num_keys() - before)
        t.barrier()
        """,
    )
    assert all(end.answer <= 0 for end in ended)  # torch's own may go meanwhile


def test_a_shaped_rate_wraps_the_transport() -> None:
    ended = run_processes(
        2,
        "t = transport.init(deadline_s=20); t.barrier(); answer([type(t).__name__, t.rate_bytes_per_s])",
        env={"TIGHTWIRE_SHAPED_RATE_BYTES_PER_S": "25e6"},
    )
    assert [end.answer for end in ended] == [["Shaped", 25e6]] * 2
