"""InfraGraph files: links one by one, and what is not in the file named."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from tightwire.cluster.imports import from_infragraph
from tightwire.errors import FileError


def edge(
    a: str, b: str, link: str, scheme: str = "many2many", instances: tuple[str, str] | None = None
) -> dict[str, Any]:
    ends = [{"component": a}, {"component": b}]
    for end, instance in zip(ends, instances or (), strict=False):
        end["instance"] = instance
    return {"ep1": ends[0], "ep2": ends[1], "link": link, "scheme": scheme}


SERVER = {
    "name": "server",
    "components": [
        {"choice": "npu", "count": 2, "name": "npu"},
        {"choice": "switch", "name": "bus"},
        {"choice": "nic", "count": 2, "name": "nic"},
    ],
    "edges": [edge("npu", "bus", "pcie"), edge("nic[0:2]", "bus[0]", "pcie")],
    "links": [{"name": "pcie"}],
}
SWITCH = {
    "name": "switch",
    "components": [{"choice": "port", "count": 8, "name": "port"}, {"choice": "cpu", "name": "asic"}],
    "edges": [edge("port", "asic", "fabric")],
}
FILE: dict[str, Any] = {
    "devices": [SERVER, SWITCH],
    "instances": [{"name": "host", "device": "server", "count": 2}, {"name": "leaf", "device": "switch"}],
    "edges": [
        edge("nic", f"port[{2 * host}:{2 * host + 2}]", "cable", "one2one", (f"host[{host}]", "leaf"))
        for host in (0, 1)
    ],
    "links": [
        {"name": "cable", "physical": {"bandwidth": {"gigabits_per_second": 100}, "latency": {"us": 2}}},
        {"name": "fabric", "physical": {"bandwidth": {"gigabits_per_second": 800}}},
    ],
}


def test_links_are_read_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "infra.yaml"
    path.write_text(yaml.safe_dump(FILE))
    cluster = from_infragraph(path)
    assert cluster.workers == 4
    assert cluster.graph is not None
    assert len(cluster.graph.links) == 2 * (2 + 2) + 8 + 2 * 2
    assert cluster.bandwidth_bytes_per_s == 12.5e9
    assert cluster.latency_s == pytest.approx(4e-6)
    assert "pcie is not in the file" in cluster.notes[0]


CHANGES = {
    "is no component": lambda f: f["edges"][0]["ep1"].update(component="hca"),
    "is no instance": lambda f: f["edges"][0]["ep1"].update(instance="rack[0]"),
    "goes beyond the 2": lambda f: f["edges"][0]["ep1"].update(instance="host[7]"),
    "is no link": lambda f: f["edges"][0].update(link="string"),
    "scheme 'ring'": lambda f: f["edges"][0].update(scheme="ring"),
    "one2one joins as many as many": lambda f: f["edges"][0]["ep2"].update(component="port[0:3]"),
    "is in none of": lambda f: f["links"][0]["physical"].update(bandwidth={"parsecs": 3}),
    "is no device": lambda f: f["instances"][0].update(device="toaster"),
    "no link has a bandwidth": lambda f: f.update(links=[{"name": "cable"}, {"name": "fabric"}]),
    "cannot be reached": lambda f: f.update(edges=f["edges"][:1]),
    "of a kind that trains": lambda f: f["devices"][0]["components"][0].update(choice="fpga", name="x"),
    "has devices and instances": lambda f: f.pop("devices"),
    "outside 1": lambda f: f["devices"][1]["components"][0].update(count=10**9),
    "outside 1 … 20,000": lambda f: f["instances"][0].update(count=18_000_000),
    "while reading it": lambda f: f["instances"][0].update(count="many"),
}


@pytest.mark.parametrize(("says", "change"), CHANGES.items(), ids=CHANGES)
def test_what_is_wrong_is_named(tmp_path: Path, says: str, change: Any) -> None:
    changed = copy.deepcopy(FILE)
    change(changed)
    if "trains" in says:
        changed["devices"][0]["edges"] = [edge("nic[0:2]", "bus[0]", "pcie")]
    path = tmp_path / "infra.yaml"
    path.write_text(yaml.safe_dump(changed))
    with pytest.raises(FileError, match=says):
        from_infragraph(path)
