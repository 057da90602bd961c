"""Programs made for one network: spanning trees packed into its links, with a proof of how good they are."""

from tightwire.architecture.allreduce.builders.synthesis.programs import Certificate, Synthesis, synthesise
from tightwire.architecture.allreduce.builders.synthesis.wiring import Wiring

__all__ = ["Certificate", "Synthesis", "Wiring", "synthesise"]
