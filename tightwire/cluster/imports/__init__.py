"""Clusters from what other tools write. A new source is a file here and a line in `SOURCES`."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tightwire.cluster.imports.infragraph import from_infragraph
from tightwire.cluster.imports.measured import measured_all_reduce
from tightwire.cluster.imports.nccl_inspector import from_nccl_inspector
from tightwire.cluster.imports.nccl_ras import from_nccl_ras
from tightwire.cluster.imports.nccl_tests import from_nccl_tests
from tightwire.cluster.imports.nccl_topology import from_nccl_topology
from tightwire.cluster.imports.nvidia_smi import from_nvidia_smi
from tightwire.cluster.values import Cluster
from tightwire.errors import FileError

Path = str | pathlib.Path


@dataclass(frozen=True, kw_only=True)
class Source:
    """A tool whose files are read.

    Attributes:
        what: it writes, in words.
        read: makes a cluster of its files and a number of nodes like the one described.
        takes_many: files of several ranks; else one file alone.
    """

    what: str
    read: Callable[[Sequence[Path], int], Cluster]
    takes_many: bool = False

    def cluster(self, name: str, paths: Sequence[Path], nodes: int) -> Cluster:
        """Returns the cluster that the files describe.

        Raises:
            FileError: more than one file of a tool that writes one, or a file that cannot be read as its.
        """
        if len(paths) > 1 and not self.takes_many:
            raise FileError(f"{name} writes one file, and {len(paths)} were given; import them one by one.")
        return self.read(paths, nodes)


def _measured(read: Callable[[Path], Cluster]) -> Callable[[Sequence[Path], int], Cluster]:
    """Wraps what was measured on all nodes: a number of nodes cannot be asked of it."""

    def wrapped(paths: Sequence[Path], nodes: int) -> Cluster:
        return refuse_nodes(read(paths[0]), paths, nodes)

    return wrapped


def refuse_nodes(cluster: Cluster, paths: Sequence[Path], nodes: int) -> Cluster:
    """Returns the cluster, where nobody asked for more nodes than were measured.

    Raises:
        FileError: somebody did.
    """
    if nodes != 1:
        raise FileError(
            f"--nodes {nodes}: {paths[0]} was measured on all of its workers; --nodes goes with files that "
            "describe one node."
        )
    return cluster


SOURCES: Mapping[str, Source] = {
    "nccl-tests": Source(
        what="nccl-tests' or rccl-tests' output, text or -J JSON", read=_measured(from_nccl_tests)
    ),
    "nccl-topology": Source(
        what="NCCL's topology XML, of NCCL_TOPO_DUMP_FILE",
        read=lambda paths, nodes: from_nccl_topology(paths[0], nodes),
    ),
    "nvidia-smi": Source(
        what="the matrix of nvidia-smi topo -m", read=lambda paths, nodes: from_nvidia_smi(paths[0], nodes)
    ),
    "nccl-inspector": Source(
        what="NCCL Inspector's JSON lines, of all ranks",
        read=lambda paths, nodes: refuse_nodes(from_nccl_inspector(paths), paths, nodes),
        takes_many=True,
    ),
    "nccl-ras": Source(
        what="the JSON report of NCCL's RAS (ncclras -f json): nodes and ranks, no speeds",
        read=_measured(from_nccl_ras),
    ),
    "infragraph": Source(
        what="an InfraGraph YAML or JSON file",
        read=lambda paths, nodes: refuse_nodes(from_infragraph(paths[0]), paths, nodes),
    ),
}

__all__ = [
    "SOURCES",
    "Source",
    "from_infragraph",
    "from_nccl_inspector",
    "from_nccl_ras",
    "from_nccl_tests",
    "from_nccl_topology",
    "from_nvidia_smi",
    "measured_all_reduce",
    "refuse_nodes",
]
