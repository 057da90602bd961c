"""Gossip: graphs, mixing matrices, one round as a program, and the `gossip` architecture."""

from tightwire.collectives.gossip.architecture import Gossip
from tightwire.collectives.gossip.graphs import GRAPHS, Graph, build_graph, connected
from tightwire.collectives.gossip.methods import METHODS, Method
from tightwire.collectives.gossip.mixing import Mixing
from tightwire.collectives.gossip.rounds import check_round, mixes, round_program

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
