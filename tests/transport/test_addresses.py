"""At which address a process is reached."""

from __future__ import annotations

import pytest

from tightwire.errors import TransportError
from tightwire.transport.addresses import (
    Candidates,
    choose,
    interface_of,
    is_local,
    is_loopback,
    own_address,
    own_candidates,
)


def host(route: str, outside: str = "", named: str = "") -> Candidates:
    return Candidates(named=named, route=route, outside=outside)


def test_the_interface_that_carries_the_traffic() -> None:
    assert choose([host("127.0.0.1", "10.0.0.1")] * 2, 0) == "127.0.0.1"  # all on one host
    assert choose([host("10.0.0.1", "10.0.0.1", "192.168.0.1"), host("10.0.0.2")], 0) == "192.168.0.1"
    assert choose([host(""), host("")], 0) == "127.0.0.1"


def test_a_host_whose_name_leads_to_itself_looks_how_it_reaches_the_others() -> None:
    def route_to(host: str) -> str:  # a cluster's own network, apart from the one that leads outside
        return {"10.0.0.2": "10.0.0.1", "fd00::2": "fd00::1"}.get(host, "")

    two = [host("127.0.1.1", "192.168.0.1"), host("10.0.0.2", "192.168.0.2")]
    assert [choose(two, rank, route_to) for rank in (0, 1)] == ["10.0.0.1", "10.0.0.2"]
    assert choose([host("::1"), host("::1"), host("fd00::2")], 1, route_to) == "fd00::1"
    assert choose([host("127.0.0.1"), host("", named="10.0.0.2")], 0, route_to) == "10.0.0.1"
    assert choose([host("127.0.0.1", "192.168.0.1"), host("10.7.0.2")], 0, route_to) == "192.168.0.1"
    assert choose([host("127.0.0.1"), host("10.7.0.2")], 0, route_to) == "127.0.0.1"  # it has no other


def test_interfaces_are_named_as_nccl_has_it() -> None:
    assert own_candidates("127.0.0.1", {"GLOO_SOCKET_IFNAME": "lo"}).named == "127.0.0.1"
    assert own_candidates("127.0.0.1", {"GLOO_SOCKET_IFNAME": "missing,lo"}).named == "127.0.0.1"
    assert own_candidates("127.0.0.1", {}).named == ""
    for wanted in ("eth77", "^l,e,i,d,b,v,w,t,s,p,g,k,n,u,a,c"):
        with pytest.raises(
            TransportError, match=r"no interface with an address is so named here; there are .*lo"
        ):
            own_candidates("127.0.0.1", {"GLOO_SOCKET_IFNAME": wanted})


def test_own_addresses_are_known() -> None:
    assert own_candidates("localhost", {}).route in ("127.0.0.1", "::1")
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.7") == ""
    assert is_loopback(own_address("127.0.0.1"))
    assert is_loopback(own_address("localhost"))
    assert is_local("localhost")
    assert not is_local("203.0.113.7")
