"""The lab: a cluster of workers with shaped links, emulated on one machine.

    with Lab(Topology(workers=4, rate_bytes_per_s=25e6)) as lab:
        result = lab.run([sys.executable, "train.py"])

Each worker is a host of its own: a network namespace with its own address, joined to the others by links that
the kernel shapes in both directions. Nothing of it outlives the process that built it.
"""

from tightwire.lab.hosts import Mode, Traffic
from tightwire.lab.job import OutputLine, Result
from tightwire.lab.lab import Lab
from tightwire.lab.slow import Slow, slowdown
from tightwire.lab.switch import AddingSwitch
from tightwire.lab.topology import Topology, format_rate, parse_rate

__all__ = [
    "AddingSwitch",
    "Lab",
    "Mode",
    "OutputLine",
    "Result",
    "Slow",
    "Topology",
    "Traffic",
    "format_rate",
    "parse_rate",
    "slowdown",
]
