"""Hosts as network namespaces, their links shaped by the kernel."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, final

from tightwire.errors import LabError
from tightwire.lab.hosts import Hosts, Mode, Traffic, start_keeper, stop_keeper
from tightwire.lab.topology import Topology, format_rate

_PACKAGES = {
    "ip": "iproute2",
    "tc": "iproute2",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "env": "coreutils",
}
_ADMIN_PATH = "/usr/sbin:/sbin:/usr/bin:/bin"
_FIRST_PORT = 29500
_SWITCH_ADDRESS = "10.77.255.254"

# What a link lets through at once after a pause. More would let short messages pass unshaped; less than the
# kernel's timers are late would cost bandwidth: with 0.25 ms a loaded machine lost a quarter of 1 Gb/s.
_BURST_S = 1.25e-3
_SMALLEST_BURST_BYTES = 2 * 1514
_LARGEST_BURST_BYTES = 256 * 1024
# Room for the windows of several senders to one receiver; TCP shrinks them long before a second of queue.
_QUEUE_S = 0.1
# Whether a connection that paused for longer than its timeout starts again from a small window; of each namespace.
_AFTER_IDLE = "/proc/sys/net/ipv4/tcp_slow_start_after_idle"
# What a class sends at a time where several share what is left of a line.
_QUANTUM_BYTES = 2 * 1514
_SMALLEST_QUEUE_BYTES = 512 * 1024


@final
class Namespaces(Hosts):
    """Each worker in a network namespace of its own, joined by bridges in one more, the switch.

    The namespaces belong to one keeper process and have no names, so the kernel reclaims them, the links and
    every process when the keeper ends. As root they are made directly; otherwise inside a user namespace.
    """

    interface = "eth0"

    def __init__(
        self, topology: Topology, mode: Literal["root", "userns"], keeps_windows: bool = False
    ) -> None:
        if mode == "root" and os.geteuid() != 0:
            raise LabError("this process is not root")
        self.mode: Mode = mode
        self.master_address = _address(0)
        self._topology = topology
        self._keeps_windows = keeps_windows
        self._tools = {name: _tool(name) for name in _PACKAGES}
        self._next_port = _FIRST_PORT
        user = ["--user", "--map-root-user"] if mode == "userns" else []
        unshare = [self._tools["unshare"], *user, "--mount", "--pid", "--fork", "--kill-child"]
        super().__init__()
        try:
            self._keeper, files = start_keeper(unshare, topology.workers + 1, _names(topology.workers))
        except BaseException:
            self.guard.close()
            raise
        try:
            self._keeper_pid = child_of(self._keeper.pid)
            self._switch, *self._hosts = (f"/proc/{self._keeper_pid}/fd/{file}" for file in files)
            self._build()
        except BaseException:
            self.close()
            raise

    def command(self, rank: int, argv: Sequence[str]) -> list[str]:
        """Enters the worker's namespaces first; what enters them stays outside, and is guarded."""
        return self.guard.guarded(self._inside(self._hosts[rank], argv))

    def _inside(self, network: str, argv: Sequence[str]) -> list[str]:
        keeper = f"/proc/{self._keeper_pid}/ns"
        inside = [f"--pid={keeper}/pid", f"--mount={keeper}/mnt"]
        return [*self._enter(network), *inside, self._tools["env"], "-C", str(Path.cwd()), *argv]

    @contextmanager
    def network(self, rank: int) -> Iterator[list[int]]:
        """Opens what the keeper holds."""
        file = os.open(self._hosts[rank], os.O_RDONLY)
        try:
            yield [file]
        finally:
            os.close(file)

    @contextmanager
    def entrance(self, rank: int) -> Iterator[list[int]]:
        """Opens the user namespace too, if there is one."""
        with self.network(rank) as networks:
            if self.mode != "userns":
                yield networks
                return
            file = os.open(f"/proc/{self._keeper_pid}/ns/user", os.O_RDONLY)
            try:
                yield [file, *networks]
            finally:
                os.close(file)

    def environment(self) -> dict[str, str]:
        """Nothing: the kernel does all."""
        return {}

    def master_port(self) -> int:
        """Counts up: nobody else is on worker 0's host."""
        self._next_port += 1
        return self._next_port

    def worker_pid(self, process_pid: int) -> int:
        """The child of the process that entered the namespaces."""
        return child_of(process_pid)

    def traffic(self) -> tuple[Traffic, ...]:
        """Reads the queues at both ends of each link."""
        to_workers = self._counts(self._switch)
        links = []
        for rank, host in enumerate(self._hosts):
            sent, received = self._counts(host)[self.interface], to_workers[_port(rank)]
            dropped = sent["drops"] + received["drops"]
            links.append(Traffic(tx_bytes=sent["bytes"], rx_bytes=received["bytes"], dropped=dropped))
        return tuple(links)

    def set_link(self, rank: int, up: bool) -> None:
        """Takes the switch's end of the link up or down."""
        self._batch("ip", self._switch, [f"link set dev {_port(rank)} {'up' if up else 'down'}"])

    def deafen(self, rank: int) -> None:
        """Gives the switch's end of the link a queue without room."""
        self._batch("tc", self._switch, [f"qdisc replace dev {_port(rank)} root pfifo limit 0"])

    def require_rate(self, rank: int) -> None:
        """Refuses links that are not shaped."""
        if self._topology.line_bytes_per_s(rank) is None:
            raise LabError(
                "links without a rate have no queue whose rate could change; build the lab with one."
            )

    def set_rate(self, rank: int, rate_bytes_per_s: float) -> None:
        """Changes the queues at both ends of the link."""
        self.require_rate(rank)
        for network, device in ((self._switch, _port(rank)), (self._hosts[rank], self.interface)):
            changed = _queue(device, rate_bytes_per_s).replace("qdisc add", "qdisc change", 1)
            self._batch("tc", network, [changed])

    def set_loss(self, rank: int, one_in: int) -> None:
        """Has the switch's end of the link drop packets whose number says so; there is no netem everywhere."""
        rate = self._topology.line_bytes_per_s(rank)
        if rate is None or one_in & (one_in - 1) or not 2 <= one_in <= 1 << 15:
            raise LabError(
                f"one packet in {one_in}: links with a rate lose one in a power of two, 2 to 32768."
            )
        self._batch("tc", self._switch, _losing(_port(rank), rate, one_in))

    def set_classes(self, classes: Mapping[int, int], equal: bool) -> None:
        """Gives every uplink its classes, into which packets are sorted by who sent them."""
        if self._topology.is_uneven:
            raise LabError(
                "jobs are told apart at uplinks, all of one rate; write for example nodes=2x2,across=200mbit."
            )
        for device, rate in _uplinks(self._topology):
            if rate is not None:
                self._batch("tc", self._switch, _classes(device, rate, classes, equal))

    def switch_command(self, argv: Sequence[str]) -> tuple[list[str], str]:
        """Enters the namespace of the switch, and gives it an address on the network that it switches."""
        if self._topology.nodes is not None:
            raise LabError(
                f"a switch that adds sits where all workers' links end, and {self._topology} has several switches; "
                "take a star."
            )
        lines = [f"address replace {_SWITCH_ADDRESS}/16 dev core", "link set dev lo up"]
        if has_cubic():
            lines.append(f"route replace 10.77.0.0/16 dev core src {_SWITCH_ADDRESS} congctl cubic")
        self._batch("ip", self._switch, lines)
        return self.guard.guarded(self._inside(self._switch, argv)), _SWITCH_ADDRESS

    def describe(self) -> str:
        """Says whose namespaces these are."""
        rate = format_rate(self._topology.rate_bytes_per_s)
        across = format_rate(self._topology.across_bytes_per_s)
        nodes = f", {self._topology.nodes} nodes with uplinks of {across}" if self._topology.nodes else ""
        if self._topology.sites:
            between = format_rate(self._topology.between_bytes_per_s)
            nodes += f", {self._topology.sites} sites with uplinks of {between}"
        who = "as root" if self.mode == "root" else "in a user namespace"
        host = f"each in its own network namespace with a link of {rate} both ways"
        control = ", TCP cubic" if has_cubic() else ""
        control += ", windows kept over pauses" if self._keeps_windows else ""
        return f"{host}{nodes}{control}, {who} (mode {self.mode})"

    def close(self) -> None:
        """Ends the keeper and the guard; the kernel does the rest."""
        stop_keeper(self._keeper)
        self.guard.close()

    def _build(self) -> None:
        topology = self._topology
        burst = burst_bytes(topology.rate_bytes_per_s)
        self._batch("ip", self._switch, [*_bridges(topology), *_ports(topology, self._hosts, burst)])
        if topology.rails:
            self._batch("ip", self._switch, [*_rails(topology, self._hosts)])
        self._batch("tc", self._switch, _switch_queues(topology))
        for rank, host in enumerate(self._hosts):
            if self._keeps_windows:
                self._call(host, ["sh", "-c", f"echo 0 > {_AFTER_IDLE}"])
            self._batch("ip", host, _host_links(rank, burst))
            self._batch("tc", host, [_queue("eth0", topology.line_bytes_per_s(rank))])
            if topology.rails:
                self._batch("ip", host, _second_link(topology, rank))
                self._batch("tc", host, [_queue("eth1", topology.across_bytes_per_s)])

    def _enter(self, network: str) -> list[str]:
        user = [f"--user=/proc/{self._keeper_pid}/ns/user", "--preserve-credentials"]
        return [self._tools["nsenter"], *(user if self.mode == "userns" else []), f"--net={network}"]

    def _batch(self, tool: str, network: str, lines: Iterable[str]) -> None:
        self._call(network, [self._tools[tool], "-batch", "-"], "\n".join(lines) + "\n")

    def _call(self, network: str, argv: Sequence[str], text: str = "") -> None:
        done = subprocess.run([*self._enter(network), *argv], input=text, capture_output=True, text=True)
        if done.returncode:
            raise LabError(f"{Path(argv[0]).name} failed: {' '.join(done.stderr.split())}")

    def _counts(self, network: str) -> dict[str, Any]:
        command = [*self._enter(network), self._tools["tc"], "-s", "-j", "qdisc", "show"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise LabError(f"the lab's counters cannot be read: {done.stderr.strip() or 'the lab has ended'}")
        return {queue["dev"]: queue for queue in reversed(json.loads(done.stdout))}


def child_of(pid: int) -> int:
    """The only child of a process that runs a command in new namespaces and waits for it.

    Raises:
        ProcessLookupError: It has none, because the command has ended or has not begun.
    """
    try:
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
    except (FileNotFoundError, IndexError) as error:
        raise ProcessLookupError(f"process {pid} has no child") from error


def has_cubic() -> bool:
    """Whether connections can be controlled as they are on most hosts, whatever this machine's default."""
    try:
        return "cubic" in Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()
    except OSError:
        return False


def burst_bytes(rate_bytes_per_s: float | None) -> int:
    """What a link of this rate lets through at once after a pause."""
    if rate_bytes_per_s is None:
        return 64 * 1024
    return round(min(max(rate_bytes_per_s * _BURST_S, _SMALLEST_BURST_BYTES), _LARGEST_BURST_BYTES))


def segment_bytes(burst: int) -> int:
    """The largest segment that TCP hands to a link: half a burst, so that a late timer wastes no credit."""
    return min(burst // 2, 65536)


def _tool(name: str) -> str:
    path = shutil.which(name, path=os.environ.get("PATH", "") + os.pathsep + _ADMIN_PATH)
    if path is None:
        raise LabError(f"the command {name!r} is missing (Debian package {_PACKAGES[name]})")
    return path


def _address(rank: int) -> str:
    return f"10.77.{(rank + 1) // 256}.{(rank + 1) % 256}"


def _names(workers: int) -> str:
    # PyTorch's store speaks IPv6 sockets, to which the same address looks like the second form.
    forms = ("{}", "::ffff:{}")
    return "".join(
        f"{form.format(_address(rank))} worker{rank}\n" for rank in range(workers) for form in forms
    )


def _port(rank: int) -> str:
    return f"port{rank}"


def _bridges(topology: Topology) -> Iterator[str]:
    """The switches: one in the core, one per site with its uplink to the core, one per node with its to those."""
    yield from _bridge("core")
    for site in range(topology.sites or 0):
        yield from _bridge(f"site{site}")
        yield from _uplink(f"out{site}", f"site{site}", f"in{site}", "core")
    for node in range(topology.nodes or 0):
        yield from _bridge(f"node{node}")
        above = f"site{topology.site_of(node)}" if topology.sites else "core"
        yield from _uplink(f"up{node}", f"node{node}", f"down{node}", above)


def _bridge(name: str) -> Iterator[str]:
    yield f"link add {name} type bridge forward_delay 0 mcast_snooping 0"
    yield f"link set dev {name} up"


def _uplink(lower_end: str, lower: str, upper_end: str, upper: str) -> Iterator[str]:
    yield f"link add {lower_end} type veth peer name {upper_end}"
    yield f"link set dev {lower_end} master {lower} up"
    yield f"link set dev {upper_end} master {upper} up"


def _ports(topology: Topology, hosts: Sequence[str], burst: int) -> Iterator[str]:
    """The worker's links: one end in the switch, the other in the worker's host."""
    for rank, host in enumerate(hosts):
        bridge = "core" if topology.nodes is None else f"node{topology.node(rank)}"
        yield f"link add {_port(rank)} type veth peer name eth0 netns {host}"
        yield f"link set dev {_port(rank)} master {bridge} gso_max_size {segment_bytes(burst)} up"


def _host_links(rank: int, burst: int) -> Iterator[str]:
    yield "link set dev lo up"
    yield f"link set dev eth0 gso_max_size {segment_bytes(burst)}"
    yield f"address add {_address(rank)}/16 dev eth0"
    yield "link set dev eth0 up"
    if has_cubic():
        # What Linux ships with. Some machines default to BBR, which starts slowly whenever partners change.
        yield f"route replace 10.77.0.0/16 dev eth0 src {_address(rank)} congctl cubic"


def _rails(topology: Topology, hosts: Sequence[str]) -> Iterator[str]:
    """The switches that join equal places of all nodes, and every worker's second link."""
    for rail in range(topology.workers_per_node):
        yield from _bridge(f"rail{rail}")
    for rank, host in enumerate(hosts):
        yield f"link add side{rank} type veth peer name eth1 netns {host}"
        yield f"link set dev side{rank} master rail{rank % topology.workers_per_node} up"


def _second_link(topology: Topology, rank: int) -> Iterator[str]:
    """The worker's second link has no address of its own: the way to the peers on its rail leads over it."""
    yield "link set dev eth1 up"
    peers = range(rank % topology.workers_per_node, topology.workers, topology.workers_per_node)
    for peer in peers:
        if peer != rank:
            control = " congctl cubic" if has_cubic() else ""
            yield f"route replace {_address(peer)}/32 dev eth1 src {_address(rank)}{control}"


def _classes(device: str, rate_bytes_per_s: float, classes: Mapping[int, int], equal: bool) -> Iterator[str]:
    """One class for the line, and inside it the workers' classes, each of which may use all that is left."""
    levels = sorted(set(classes.values()))
    bits, burst = round(rate_bytes_per_s * 8), burst_bytes(rate_bytes_per_s)
    limit = int(max(rate_bytes_per_s * _QUEUE_S, _SMALLEST_QUEUE_BYTES))
    yield f"qdisc replace dev {device} root handle 1: htb default {10 + len(levels) - 1}"
    yield f"class add dev {device} parent 1: classid 1:1 htb rate {bits}bit burst {burst}b cburst {burst}b"
    for place, level in enumerate(levels):
        own = bits // len(levels) if equal else max(8000, bits // 100)
        prio = 0 if equal else min(place, 7)
        shape = f"rate {own}bit ceil {bits}bit prio {prio} quantum {_QUANTUM_BYTES} burst {burst}b cburst {burst}b"
        yield f"class add dev {device} parent 1:1 classid 1:{10 + place} htb {shape}"
        yield f"qdisc add dev {device} parent 1:{10 + place} bfifo limit {limit}b"
        for rank in (rank for rank, number in classes.items() if number == level):
            match = f"match ip src {_address(rank)}/32"
            yield f"filter add dev {device} parent 1: protocol ip prio 1 u32 {match} flowid 1:{10 + place}"


def _lines(topology: Topology, device: str) -> Iterator[str]:
    """Several lines between two nodes: each a class of its own rate, into which pairs of workers are sorted."""
    yield f"qdisc add dev {device} root handle 1: htb default 1"
    for line, rate in enumerate(topology.across_lines_bytes_per_s, start=1):
        bits, burst = round(rate * 8), burst_bytes(rate)
        yield f"class add dev {device} parent 1: classid 1:{line} htb rate {bits}bit burst {burst}b cburst {burst}b"
        limit = int(max(rate * _QUEUE_S, _SMALLEST_QUEUE_BYTES))
        yield f"qdisc add dev {device} parent 1:{line} bfifo limit {limit}b"
    graph = topology.graph()
    for src in range(topology.workers):
        for dst in range(topology.workers):
            if topology.node(src) != topology.node(dst):
                names = {graph.directions[i].dst for i in graph.route(src, dst)}
                line = next(i for i in range(len(topology.across_lines_bytes_per_s)) if f"line{i}" in names)
                match = f"match ip src {_address(src)}/32 match ip dst {_address(dst)}/32"
                yield f"filter add dev {device} parent 1: protocol ip prio 1 u32 {match} flowid 1:{line + 1}"


def _losing(device: str, rate_bytes_per_s: float, one_in: int) -> Iterator[str]:
    """A class of the line's rate, and one without room, for a share of packets by IP number; a handshake's is 0."""
    bits, burst = round(rate_bytes_per_s * 8), burst_bytes(rate_bytes_per_s)
    limit = int(max(rate_bytes_per_s * _QUEUE_S, _SMALLEST_QUEUE_BYTES))
    shape = f"rate {bits}bit burst {burst}b cburst {burst}b"
    yield f"qdisc replace dev {device} root handle 1: htb default 1"
    yield f"class add dev {device} parent 1: classid 1:1 htb {shape}"
    yield f"qdisc add dev {device} parent 1:1 bfifo limit {limit}b"
    yield f"class add dev {device} parent 1: classid 1:2 htb {shape}"
    yield f"qdisc add dev {device} parent 1:2 pfifo limit 0"
    yield f"filter add dev {device} parent 1: protocol ip prio 1 u32 match u16 1 {one_in - 1:#x} at 4 flowid 1:2"


def _switch_queues(topology: Topology) -> Iterator[str]:
    for rank in range(topology.workers):
        yield _queue(_port(rank), topology.line_bytes_per_s(rank))
        if topology.rails:
            yield _queue(f"side{rank}", topology.across_bytes_per_s)
    for device, rate in _uplinks(topology):
        if not topology.across_lines_bytes_per_s:
            yield _queue(device, rate)
        elif device.startswith("up"):
            yield from _lines(topology, device)
        else:
            yield _queue(device, None)  # shaped on the way up already


def _uplinks(topology: Topology) -> Iterator[tuple[str, float | None]]:
    """Both ends of every node's and every site's uplink, and what they carry."""
    for node in range(topology.nodes or 0):
        yield f"up{node}", topology.across_bytes_per_s
        yield f"down{node}", topology.across_bytes_per_s
    for site in range(topology.sites or 0):
        yield f"out{site}", topology.between_bytes_per_s
        yield f"in{site}", topology.between_bytes_per_s


def _queue(device: str, rate_bytes_per_s: float | None) -> str:
    """The queue that shapes what leaves a device, or only counts it."""
    if rate_bytes_per_s is None:
        return f"qdisc add dev {device} root pfifo limit 10000"
    limit = int(max(rate_bytes_per_s * _QUEUE_S, _SMALLEST_QUEUE_BYTES))
    bits, burst = round(rate_bytes_per_s * 8), burst_bytes(rate_bytes_per_s)
    return f"qdisc add dev {device} root tbf rate {bits}bit burst {burst}b limit {limit}b"
