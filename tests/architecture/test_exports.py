"""Programs in the languages of other tools, read as those tools read them."""

import json
import pathlib
import xml.etree.ElementTree as ElementTree
from collections import Counter
from typing import Any

import pytest

from tightwire.architecture import Program, Wiring, build, synthesise
from tightwire.architecture.allreduce.exports import export
from tightwire.architecture.allreduce.exports.mscclpp import execution_plan
from tightwire.errors import ProgramError


def test_exports(tmp_path: pathlib.Path) -> None:
    program = synthesise(Wiring.star([1.0, 0.25, 1.0])).program
    for name in ("plan.json", "tuner.csv", "graph.xml", "trace.et"):
        export(program, tmp_path / name, 3000)
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["collective"] == "allreduce"
    assert len(plan["gpus"]) == 3
    rows = [
        row.split(",") for row in (tmp_path / "tuner.csv").read_text().splitlines() if not row.startswith("#")
    ]
    assert all(len(row) == 10 and row[0] == "allreduce" for row in rows)
    channels = ElementTree.parse(tmp_path / "graph.xml").getroot().findall("graph/channel")
    assert all(sorted(int(gpu.attrib["dev"], 16) for gpu in channel) == [0, 1, 2] for channel in channels)
    assert sorted(p.name for p in tmp_path.glob("*.et")) == ["trace.0.et", "trace.1.et", "trace.2.et"]
    with pytest.raises(ProgramError, match=r"programs are written as \.json"):
        export(program, tmp_path / "plan.txt", 3000)
    with pytest.raises(ProgramError, match="NCCL has no algorithm like torus"):
        export(build("torus", 4), tmp_path / "tuner.csv", 3000)


@pytest.mark.parametrize(
    "program",
    [synthesise(Wiring.star([1.0, 0.5, 1.0, 0.25])).program, build("ring", 8)],
    ids=["synthesised", "ring"],
)
def test_an_execution_plan_adds_up(program: Program) -> None:
    """The plan's operations, played on numbers as the executor reads them, end with the sum everywhere."""
    plan = json.loads(json.dumps(execution_plan(program)))
    gpus = plan["gpus"]
    buffers = {(gpu["id"], "i"): [10 ** gpu["id"]] * gpu["input_chunks"] for gpu in gpus}
    buffers |= {(gpu["id"], "s"): [0] * gpu["scratch_chunks"] for gpu in gpus}
    blocks = [_Block(gpu, block) for gpu in gpus for block in gpu["threadblocks"]]
    signals: Counter[tuple[int, int, int]] = Counter()
    while any(block.ops for block in blocks):
        moved = False
        for block in blocks:
            while block.ops and block.play(block.ops[0], buffers, signals):
                block.ops.pop(0)
                moved = True
        assert moved, "the plan waits for ever"
    total = sum(10**rank for rank in range(program.num_ranks))
    assert all(set(buffers[gpu["id"], "i"]) == {total} for gpu in gpus)


class _Block:
    """A thread block, with what microsoft/mscclpp asks of it in src/executor/execution_plan.cc."""

    def __init__(self, gpu: dict[str, Any], told: dict[str, Any]) -> None:
        self.rank, self.ops = gpu["id"], list(told["ops"])
        (own,), (refs,) = told["channels"], told["remote_buffer_refs"]
        to = gpu["channels"][0]["connected_to"]
        # The k-th channel of a to b belongs to the k-th of b to a.
        self.channels = [(to[i], to[:i].count(to[i])) for i in own["channel_ids"]]
        self.remote = [gpu["remote_buffers"][i] for i in refs["remote_buffer_ids"]]
        assert len(self.ops) <= 64
        assert len(self.channels) <= 16
        assert len(self.remote) <= 16
        assert all(len(op.get("channel_ids", ())) <= 8 for op in self.ops)

    def play(self, op: dict[str, Any], buffers: Any, signals: Counter[tuple[int, int, int]]) -> bool:
        near = [self.channels[i] for i in op.get("channel_ids", ())]
        if op["name"] == "wait":
            if not all(signals[peer, self.rank, number] for peer, number in near):
                return False
            for peer, number in near:
                signals[peer, self.rank, number] -= 1
        elif op["name"] == "signal":
            signals.update((self.rank, peer, number) for peer, number in near)
        elif op["name"] == "put":
            (src,), (dst,) = op["src_buff"], op["dst_buff"]
            place = self.remote[dst["buffer_id"]]
            assert place["rank"] == near[0][0]
            buffers[place["rank"], place["type"]][dst["index"]] = buffers[self.rank, src["type"]][
                src["index"]
            ]
        elif op["name"] == "re":
            own, landed = op["src_buff"]
            buffers[self.rank, own["type"]][own["index"]] += buffers[self.rank, landed["type"]][
                landed["index"]
            ]
        else:
            assert op["name"] in ("flush", "nop")
        return True


def test_a_program_that_no_thread_block_holds_is_refused() -> None:
    with pytest.raises(ProgramError, match="no thread block of MSCCL"):
        execution_plan(build("direct", 12))


def test_nccl_reads_its_tables_and_graphs(tmp_path: pathlib.Path) -> None:
    """As its readers do: known words, lines of 256 characters, required attributes, numbers of base 16."""
    export(build("ring", 12), tmp_path / "tuner.csv", 3000)
    lines = (tmp_path / "tuner.csv").read_text().splitlines()
    assert all(len(line) < 256 for line in lines)
    for kind, low, high, algorithm, protocol, *numbers in (x.split(",") for x in lines if x[0] != "#"):
        assert kind in ("broadcast", "reduce", "allgather", "reducescatter", "allreduce")
        assert algorithm in ("tree", "ring", "collnet_direct", "collnet_chain", "nvls", "nvls_tree", "pat")
        assert protocol in ("ll", "ll128", "simple")
        assert 0 <= int(low) < int(high) < 2**64
        assert len(numbers) == 5
        assert all(-1 <= int(number) <= 32 for number in numbers)
    export(build("ring", 12), tmp_path / "graph.xml", 3000)
    root = ElementTree.parse(tmp_path / "graph.xml").getroot()
    assert (root.tag, root.attrib["version"]) == ("graphs", "1")
    (graph,) = root
    whole = {
        name: int(graph.attrib[name]) for name in ("id", "pattern", "crossnic", "nchannels", "samechannels")
    }
    assert [float(graph.attrib[name]) > 0 for name in ("speedintra", "speedinter")] == [True, True]
    paths = ("LOC", "NVL", "NVB", "C2C", "PCI", "PXB", "P2C", "PXN", "PHB", "SYS", "DIS")
    assert {graph.attrib["typeintra"], graph.attrib["typeinter"]} <= set(paths)
    assert whole["nchannels"] == len(graph) <= 32
    for channel in graph:
        assert sorted(int(gpu.attrib["dev"], 16) for gpu in channel) == list(range(12))


def test_chakra_reads_its_traces(tmp_path: pathlib.Path) -> None:
    """By protocol buffers' own reader, from the fields of mlcommons/chakra, schema/protobuf/et_def.proto."""
    pb2 = pytest.importorskip("google.protobuf.descriptor_pb2")
    pool = pytest.importorskip("google.protobuf.descriptor_pool").DescriptorPool()
    factory = pytest.importorskip("google.protobuf.message_factory")
    fields = {
        "Attribute": [("name", 1, 9, 1), ("int32_val", 7, 5, 1), ("int64_val", 9, 3, 1), ("bool_val", 27, 8, 1)],
        "Metadata": [("version", 1, 9, 1)],
        "Node": [
            ("id", 1, 4, 1), ("name", 2, 9, 1), ("type", 3, 5, 1), ("ctrl_deps", 4, 4, 3), ("data_deps", 5, 4, 3),
        ],
    }  # fmt: skip
    file = pb2.FileDescriptorProto(name="et.proto", syntax="proto3")
    for name, rows in fields.items():
        kind = file.message_type.add(name=name)
        for label, number, kind_of, repeated in rows:
            kind.field.add(name=label, number=number, type=kind_of, label=repeated)
    file.message_type[2].field.add(name="attr", number=10, type=11, label=3, type_name=".Attribute")
    pool.Add(file)
    types = {name: factory.GetMessageClass(pool.FindMessageTypeByName(name)) for name in fields}
    program = build("ring", 3)
    export(program, tmp_path / "t.et", 3000)
    ends: Counter[tuple[int, ...]] = Counter()
    for rank in range(3):
        data, nodes = (tmp_path / f"t.{rank}.et").read_bytes(), []
        while data:
            size = skip = 0
            while True:  # a length, seven bits a byte
                size |= (data[skip] & 127) << (7 * skip)
                skip += 1
                if data[skip - 1] < 128:
                    break
            nodes.append(data[skip : skip + size])
            data = data[skip + size :]
        assert types["Metadata"].FromString(nodes[0]).version == "0.0.4"
        seen: set[int] = set()
        for node in map(types["Node"].FromString, nodes[1:]):
            assert node.type in (5, 6)  # COMM_SEND_NODE, COMM_RECV_NODE
            assert set(node.data_deps) <= seen
            seen.add(node.id)
            told = {a.name: a.int64_val or a.int32_val for a in node.attr}
            sign = 1 if node.type == 5 else -1
            ends[tuple(told[f"comm_{x}"] for x in ("src", "dst", "tag", "size"))] += sign
        assert len(seen) == len(program.sends(rank)) + len(program.receives(rank))
    assert set(ends.values()) == {0}  # every send has its receive
