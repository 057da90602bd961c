"""Gossip: graphs, mixing matrices, one round as a program, and the `gossip` architecture."""

from tightwire.architecture.gossip.gossip import Gossip
from tightwire.architecture.gossip.graphs import GRAPHS, Graph, build_graph, connected
from tightwire.architecture.gossip.methods import METHODS, Method
from tightwire.architecture.gossip.mixing import Mixing
from tightwire.architecture.gossip.rounds import check_round, mixes, round_program

__all__ = [
    "GRAPHS",
    "METHODS",
    "Gossip",
    "Graph",
    "Method",
    "Mixing",
    "build_graph",
    "check_round",
    "connected",
    "mixes",
    "round_program",
]
