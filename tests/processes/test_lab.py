"""Labs as users have them: real namespaces, real links, and launchers that die."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import pytest

import tightwire.lab
from tightwire.errors import LabError
from tightwire.lab import Lab, OutputLine, Topology

MODES = ("root", "userns", "shaped")
KERNEL_MODES = ("root", "userns")
PACKAGE = Path(tightwire.lab.__file__).parent.parent


@pytest.fixture
def open_lab() -> Iterator[Callable[..., Lab]]:
    """Opens labs that are closed after the test; skips it where the machine forbids the mode."""
    labs: list[Lab] = []

    def open_one(mode: str, workers: int = 2, **options: object) -> Lab:
        topology = options.pop("topology", Topology(workers=workers, rate_bytes_per_s=25e6))
        try:
            labs.append(Lab(topology, mode=mode, grace_s=0.2, **options).__enter__())  # type: ignore[arg-type]
        except LabError as error:
            pytest.skip(str(error))
        return labs[-1]

    yield open_one
    for lab in labs:
        lab.__exit__(None, None, None)


def python(lab: Lab, code: str, **options: object) -> dict[int, list[str]]:
    """Runs Python code on every worker, which must succeed, and returns the lines that each printed."""
    lines: dict[int, list[str]] = {rank: [] for rank in range(lab.topology.workers)}
    errors: list[str] = []

    def collect(line: OutputLine) -> None:
        lines[line.rank].append(line.text) if line.stream == "stdout" else errors.append(line.text)

    command = [sys.executable, "-S", "-c", code]
    result = lab.run(command, on_line=collect, timeout_s=30, **options)  # type: ignore[arg-type]
    assert result.ok, (result.describe(), errors)
    return lines


def processes_with(marker: str) -> list[int]:
    """Every living process that has the marker in its arguments, the caller's own children included."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if marker.encode() in arguments:
            found.append(int(entry.name))
    return found


def networks(pids: list[int] | None = None) -> set[str]:
    """The network namespaces that these processes live in; by default all processes."""
    found = set()
    names = ["[0-9]*"] if pids is None else [str(pid) for pid in pids]
    for entry in chain.from_iterable(Path("/proc").glob(f"{name}/ns/net") for name in names):
        try:
            found.add(str(entry.readlink()))
        except OSError:
            continue
    return found


def eventually(condition: Callable[[], bool], timeout_s: float = 10) -> bool:
    end_s = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < end_s:
        time.sleep(0.02)
    return condition()


@pytest.mark.parametrize("mode", MODES)
def test_workers_get_what_torchrun_gives(mode: str, open_lab: Callable[..., Lab]) -> None:
    lab = open_lab(mode)
    code = "import os, json; print(json.dumps(dict(os.environ)))"
    environments = [json.loads(lines[0]) for lines in python(lab, code, env={"MINE": "1"}).values()]
    for rank, environment in enumerate(environments):
        assert environment["RANK"] == str(rank)
        assert environment["WORLD_SIZE"] == "2"
        assert environment["MINE"] == "1"
        assert environment["OMP_NUM_THREADS"] == os.environ.get("OMP_NUM_THREADS", "1")
        assert environment["GLOO_SOCKET_IFNAME"] == ("lo" if mode == "shaped" else "eth0")
        about = json.loads(environment["TIGHTWIRE_LAB"])
        assert (about["mode"], about["workers"], about["rate_bytes_per_s"]) == (mode, 2, 25e6)
        shaped_rate = environment.get("TIGHTWIRE_SHAPED_RATE_BYTES_PER_S")
        assert shaped_rate == ("25000000.0" if mode == "shaped" else None)
    assert len({environment["MASTER_ADDR"] + environment["MASTER_PORT"] for environment in environments}) == 1


@pytest.mark.parametrize("mode", KERNEL_MODES)
def test_a_worker_sees_a_machine_of_its_own(mode: str, open_lab: Callable[..., Lab]) -> None:
    code = """if True:
        import os, socket
        print(os.getcwd())
        print(sorted(name for _, name in socket.if_nameindex()) == ["eth0", "lo"])
        print(f"/proc/{os.getpid()}" == os.path.realpath("/proc/self") or os.path.realpath("/proc/self"))
        print(socket.gethostbyname(f"worker{os.environ['RANK']}"))
        """
    for rank, lines in python(open_lab(mode), code).items():
        assert lines == [str(Path.cwd()), "True", "True", f"10.77.0.{rank + 1}"]


SEND = """if True:
    import os, socket, sys, time
    address = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    if os.environ["RANK"] == "0":
        connection = socket.create_server(address).accept()[0]
        start_s = time.monotonic()
        print(len(connection.makefile("rb").read()))
        print(time.monotonic() - start_s)
    else:
        while True:
            try:
                connection = socket.create_connection(address, 0.5)
                break
            except OSError:
                pass
        connection.settimeout(None)
        connection.sendall(bytes(int(os.environ["BYTES"])))
"""


def send(lab: Lab, num_bytes: int) -> float:
    """Sends bytes from worker 1 to worker 0, and returns the seconds that they took."""
    received, seconds = python(lab, SEND, env={"BYTES": str(num_bytes)})[0]
    assert int(received) == num_bytes
    return float(seconds)


@pytest.mark.parametrize("mode", KERNEL_MODES)
def test_a_process_from_elsewhere_enters_a_host(mode: str, open_lab: Callable[..., Lab]) -> None:
    code = f"import sys; sys.path.insert(0, {str(PACKAGE / 'lab')!r}); import keeper, socket\n"
    code += "for file in sys.argv[1:]: keeper.enter(int(file))\n"
    code += "print(*sorted(name for _, name in socket.if_nameindex()))"
    with open_lab(mode).entrance(1) as files:
        command = [sys.executable, "-I", "-S", "-c", code, *map(str, files)]
        ran = subprocess.run(command, pass_fds=files, capture_output=True, text=True, check=False)
    assert ran.stdout.split() == ["eth0", "lo"], ran.stderr


@pytest.mark.parametrize("mode", KERNEL_MODES)
def test_the_kernel_counts_what_passes_a_link(mode: str, open_lab: Callable[..., Lab]) -> None:
    lab = open_lab(mode)
    assert all(link.tx_bytes == 0 for link in lab.traffic())
    send(lab, 1_000_000)

    def both_ends_agree() -> bool:
        receiver, sender = lab.traffic()
        return (receiver.rx_bytes, receiver.tx_bytes) == (sender.tx_bytes, sender.rx_bytes)

    assert eventually(both_ends_agree)  # the last acknowledgements may still be on their way
    # TCP fills its packets where it can; on a busy machine it sends some that are half full.
    assert 1_000_000 * 1514 / 1448 < lab.traffic()[1].tx_bytes < 1_300_000
    send(lab, 1_000_000)
    assert lab.traffic()[1].tx_bytes > 2 * 1_000_000


# A busy machine makes a link look slower, never faster, so these two hold on every machine.


@pytest.mark.parametrize("rate_bytes_per_s", [12.5e6, 125e6])
def test_no_link_is_faster_than_its_rate(rate_bytes_per_s: float, open_lab: Callable[..., Lab]) -> None:
    lab = open_lab("auto", topology=Topology(workers=2, rate_bytes_per_s=rate_bytes_per_s))
    if not lab.shapes_everything:
        pytest.skip(lab.describe())
    assert send(lab, int(rate_bytes_per_s / 4)) > 0.25


def test_nodes_are_joined_by_their_uplinks(open_lab: Callable[..., Lab]) -> None:
    topology = Topology.parse("nodes=2x1,inside=none,across=8mbit")
    lab = open_lab("auto", topology=topology)
    assert "2 nodes with uplinks of 8mbit" in lab.describe()
    assert send(lab, 200_000) > 0.18


def test_sites_are_joined_by_theirs(open_lab: Callable[..., Lab]) -> None:
    topology = Topology.parse("sites=2x1x1,inside=none,across=none,between=8mbit")
    lab = open_lab("auto", topology=topology)
    assert "2 sites with uplinks of 8mbit" in lab.describe()
    assert send(lab, 200_000) > 0.18


@pytest.mark.parametrize("mode", KERNEL_MODES)
def test_a_cut_link_is_silent_until_mended(mode: str, open_lab: Callable[..., Lab]) -> None:
    lab = open_lab(mode)
    lab.cut(1)
    result = lab.run([sys.executable, "-S", "-c", SEND], on_line=lambda line: None, timeout_s=0.5)
    assert result.timed_out
    lab.mend(1)
    send(lab, 1000)


@pytest.mark.parametrize("mode", KERNEL_MODES)
def test_the_end_is_told_of_a_worker_whose_starter_was_stopped_alone(
    mode: str, open_lab: Callable[..., Lab]
) -> None:
    # A starter that sees its worker stopped stops itself, at times only after both were told to go on.
    begun: set[int] = set()

    def stop_the_starters(line: OutputLine) -> None:
        begun.add(line.rank)
        if len(begun) < 2:
            return
        for children in Path("/proc/self/task").glob("*/children"):
            for child in children.read_text().split():
                if b"nsenter" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")[0]:
                    os.kill(int(child), signal.SIGSTOP)

    lab = open_lab(mode)
    result = lab.run(["sh", "-c", "echo; sleep 0.5"], on_line=stop_the_starters, timeout_s=20.0)
    assert result.ok, result.describe()


@pytest.mark.parametrize("mode", KERNEL_MODES)
def test_two_labs_at_once_are_strangers(mode: str, open_lab: Callable[..., Lab]) -> None:
    first, second = open_lab(mode), open_lab(mode)
    send(second, 1000)
    assert first.traffic()[0].rx_bytes == 0
    send(first, 1000)


@pytest.mark.parametrize("mode", MODES)
def test_batch_scheduling(mode: str, open_lab: Callable[..., Lab]) -> None:
    lab = open_lab(mode, batch_scheduling=True)
    code = "import os; print(os.sched_getscheduler(0) == os.SCHED_BATCH)"
    assert list(python(lab, code).values()) == [["True"], ["True"]]
    assert "SCHED_BATCH" in lab.describe()


@pytest.mark.parametrize("mode", KERNEL_MODES)
def test_a_closed_lab_leaves_nothing(mode: str, open_lab: Callable[..., Lab]) -> None:
    marker = f"61{os.getpid()}"
    lab = open_lab(mode)
    # In a session of its own it is out of reach of signals to the worker's group.
    command = ["sh", "-c", f"setsid sleep {marker} >/dev/null 2>&1 & sleep 0.3"]
    assert lab.run(command, on_line=lambda line: None).ok
    left = networks(processes_with(marker))
    assert len(left) == 2
    lab.__exit__(None, None, None)
    assert processes_with(marker) == []
    assert not left & networks()


LAUNCHER = """if True:
    import signal, sys
    from tightwire.lab import Lab, Topology
    signal.signal(signal.SIGINT, signal.default_int_handler)  # else ignored where the tests run in the background
    with Lab(Topology(workers=2, rate_bytes_per_s=25e6), mode=sys.argv[1]) as lab:
        if sys.argv[3] == "frozen":
            act = lambda line: (lab.freeze(line.rank), print(line.text, flush=True))
        else:
            act = lambda line: print(line.text, flush=True)
        lab.run(["sh", "-c", "sleep $0 & echo up; wait; exit 7", sys.argv[2]], on_line=act)
"""


@contextmanager
def launch(
    mode: str, marker: str, how: str = "running", code: str = LAUNCHER
) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", code, mode, marker, how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        assert launcher.stderr is not None
        try:
            ready = [launcher.stdout.readline() for _ in range(2)]
            assert ready == ["up\n", "up\n"], launcher.stderr.read()
            yield launcher
        finally:
            launcher.kill()


@pytest.mark.parametrize("how", ["running", "frozen"])
@pytest.mark.parametrize("mode", MODES)
def test_a_killed_launcher_leaves_nothing(mode: str, how: str, open_lab: Callable[..., Lab]) -> None:
    open_lab(mode)
    marker = f"{62 + (how == 'frozen')}{os.getpid()}"
    with launch(mode, marker, how) as launcher:
        left = networks(processes_with(marker)) - networks([os.getpid()])
        assert len(left) == (0 if mode == "shaped" else 2)
        launcher.kill()
        assert eventually(lambda: not processes_with(marker))
        assert eventually(lambda: not left & networks())


@pytest.mark.parametrize("mode", MODES)
def test_ctrl_c_reaches_every_worker_before_the_launcher_ends(
    mode: str, open_lab: Callable[..., Lab]
) -> None:
    open_lab(mode)
    marker = f"64{os.getpid()}"
    code = LAUNCHER.replace('"sleep $0', "\"trap 'echo bye; exit 0' INT; sleep $0")
    with launch(mode, marker, code=code) as launcher:
        launcher.send_signal(signal.SIGINT)
        output, _ = launcher.communicate(timeout=20)
        assert output == "bye\nbye\n"
    assert launcher.returncode in (1, -signal.SIGINT)
    assert processes_with(marker) == []


def test_torch_scripts_work_unchanged(open_lab: Callable[..., Lab]) -> None:
    code = """if True:
        import torch, torch.distributed as dist
        dist.init_process_group("gloo")
        total = torch.ones(1000) * (dist.get_rank() + 1)
        dist.all_reduce(total)
        print(total.sum().item(), flush=True)
        dist.destroy_process_group()
        """
    lab = open_lab("auto")
    lines: list[str] = []
    result = lab.run([sys.executable, "-c", code], on_line=lambda line: lines.append(line.text), timeout_s=60)
    assert result.ok, lines
    assert lines == ["3000.0"] * 2


@pytest.fixture
def nobodys_python() -> Iterator[list[str]]:
    """A Python as an ordinary user, with a copy of the lab that this user can read."""
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin")
    setpriv = shutil.which("setpriv")
    if os.geteuid() != 0 or python is None or setpriv is None:
        pytest.skip("needs root, setpriv and a Python that every user may run")
    if subprocess.run([python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]).returncode:
        pytest.skip(f"{python} is older than 3.11")
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder, "tightwire")
        for room in ("lab", "cluster"):
            shutil.copytree(PACKAGE / room, package / room, ignore=shutil.ignore_patterns("__pycache__"))
        for module in ("errors.py", "files.py", "units.py", "ways.py"):
            shutil.copy(PACKAGE / module, package)
        Path(package, "__init__.py").touch()
        Path(folder).chmod(0o755)
        yield [setpriv, "--reuid=65534", "--regid=65534", "--clear-groups", "env", "-C", folder, python]


def test_an_ordinary_user_gets_a_user_namespace(
    nobodys_python: list[str], open_lab: Callable[..., Lab]
) -> None:
    open_lab("userns")
    code = """if True:
        import sys
        from tightwire.lab import Lab, Topology
        with Lab(Topology(workers=2, rate_bytes_per_s=25e6)) as lab:
            print(lab.describe())
            assert lab.run([sys.executable, "-c", sys.argv[1]], env={"BYTES": "1000000"}).ok
            assert lab.traffic()[1].tx_bytes > 1_000_000
        """
    done = subprocess.run([*nobodys_python, "-c", code, SEND], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert "mode userns" in done.stdout
    assert "root (this process is not root)" in done.stdout
    assert "[0] 1000000" in done.stdout
