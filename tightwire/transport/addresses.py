"""At which of its addresses a process is reached by its peers: on the interface that carries the traffic."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from tightwire.errors import TransportError

Address = tuple[str, int]
_IP_RECVERR, _IPV6_RECVERR = 11, 25  # Linux: a closed port of a peer is told
_TEST_NETS: Final = ("192.0.2.1", "2001:db8::1")  # documentation addresses: the default routes


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The addresses of one process, as its host knows them; "" where there is none.

    Attributes:
        named: of the interface that GLOO_SOCKET_IFNAME names.
        route: from which the place where workers meet is reached.
        outside: from which the rest of the world is.
    """

    named: str
    route: str
    outside: str

    def to_dict(self) -> dict[str, str]:
        """Returns the fields."""
        return asdict(self)


def own_candidates(host: str | None, environment: Mapping[str, str] = os.environ) -> Candidates:
    """Looks up this process's addresses.

    Args:
        host: where workers meet, if it is known.
        environment: GLOO_SOCKET_IFNAME is one or more names of interfaces, the first that exists being taken; after
            `^`, beginnings of names that are not wanted, as NCCL has it.

    Raises:
        TransportError: no interface is so named; with the names that there are.
    """
    wanted = environment.get("GLOO_SOCKET_IFNAME", "")
    outside = next(filter(None, map(_route_to, _TEST_NETS)), "")
    route = _route_to(host) if host else ""
    return Candidates(named=_named(wanted, (route, outside)) if wanted else "", route=route, outside=outside)


def _route_to(host: str) -> str:
    """Returns the address from which a host is reached; "" if it is not."""
    for family, place in _resolved(host):
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(
                (place[0], 9, *place[2:])
            )  # sends nothing: a datagram socket only looks up its route
            return str(probe.getsockname()[0])
    return ""


def _resolved(host: str) -> list[tuple[socket.AddressFamily, tuple[Any, ...]]]:
    """Returns the addresses of a host, each with its family."""
    with suppress(OSError):
        return [(found[0], found[4]) for found in socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)]
    return []


def _addresses_of(name: str) -> list[str]:
    """Returns the addresses of an interface, IPv4 first and link-local ones left out; on Linux."""
    try:
        import fcntl
        import struct
    except ImportError:  # Windows
        return []
    siocgifaddr = 0x8915
    found: list[str] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
        answer = fcntl.ioctl(probe.fileno(), siocgifaddr, struct.pack("256s", name.encode()[:15]))
        found.append(socket.inet_ntoa(answer[20:24]))
    with suppress(OSError), Path("/proc/net/if_inet6").open() as table:
        for line in table:
            digits, _, _, scope, _, owner = line.split()
            if owner == name and scope in ("00", "10"):  # global, and the host's own
                found.append(str(ipaddress.ip_address(bytes.fromhex(digits))))
    return found


def choose(candidates: Sequence[Candidates], rank: int, route_to: Callable[[str], str] = _route_to) -> str:
    """Returns the address at which this process, `rank`, is reached.

    An interface that was named wins. Else it is the one by which the meeting place is reached, unless that is the
    loopback while other ranks come from elsewhere: then a host's own name led to 127.0.0.1, and it is the one by which
    those ranks are reached.

    >>> one = Candidates(named="", route="127.0.0.1", outside="")
    >>> two = Candidates(named="", route="10.0.0.2", outside="")
    >>> choose([one, one], 0), choose([one, two], 0, route_to=lambda host: "10.0.0.1")
    ('127.0.0.1', '10.0.0.1')

    Args:
        candidates: of every rank.
        rank: of this process.
        route_to: gives the address from which a host is reached; "" if it is not.
    """
    mine = candidates[rank]
    if mine.named:
        return mine.named
    elsewhere = [place for c in candidates if not is_loopback(place := c.named or c.route)]
    if mine.route and (not elsewhere or not is_loopback(mine.route)):
        return mine.route
    towards = (address for address in map(route_to, elsewhere) if not is_loopback(address))
    return next(towards, "") or mine.outside or mine.route or "127.0.0.1"


def own_address(host: str) -> str:
    """Returns the address at which this process is reached by peers that it does not know yet.

    Args:
        host: where they meet. A name of this host that leads to 127.0.0.1 or 127.0.1.1 tells nothing of them, unless
            it is `localhost`.
    """
    mine = own_candidates(host)
    is_own_name = is_loopback(mine.route) and host != "localhost" and not _is_address(host)
    return mine.named or (is_own_name and mine.outside) or mine.route or "127.0.0.1"


def is_loopback(address: str) -> bool:
    """Whether an address, or none, is the host's own."""
    return not address or ipaddress.ip_address(address.partition("%")[0]).is_loopback


def bind_datagram(host: str) -> socket.socket:
    """Returns a datagram socket at a free port of `host`, which is told of closed ports where the kernel does that."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_DGRAM)
    listening.bind((host, 0))
    listening.setblocking(False)
    with suppress(OSError):
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
        else:
            listening.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
    return listening


def interface_of(address: str) -> str:
    """Returns the name of the interface that has an address; "" where that cannot be told."""
    return next((name for _, name in socket.if_nameindex() if address in _addresses_of(name)), "")


def is_local(host: str) -> bool:
    """Whether `host` is an address, or leads to one, of this host."""
    for family, place in _resolved(host):
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((place[0], 0))
            return True
    return False


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _named(wanted: str, likely: Sequence[str]) -> str:
    names = [name for _, name in socket.if_nameindex()]
    if wanted.startswith("^"):
        barred = tuple(filter(None, wanted[1:].split(",")))
        allowed = [name for name in names if not name.startswith(barred)]
    else:
        allowed = [name for name in wanted.split(",") if name in names]
    found = [address for name in allowed for address in _addresses_of(name)]
    if not found:
        raise TransportError(
            f"GLOO_SOCKET_IFNAME is {wanted!r}, and no interface with an address is so named here; there are "
            f"{', '.join(names)}. Name one of them, or unset the variable."
        )
    return next((address for address in likely if address in found), found[0])
