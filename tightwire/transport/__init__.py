"""How bytes move between ranks: one contract, three transports, wrappers to count, shape and break them."""

from tightwire.transport.base import DONE, Done, Transport, Work, native_bytes
from tightwire.transport.counting import Counting, Tally
from tightwire.transport.faulty import Cut, Delay, Drop, Fault, Faulty, Freeze, Kill
from tightwire.transport.shaped import Shaped
from tightwire.transport.single import Single
from tightwire.transport.switched import Switch, Switched
from tightwire.transport.threads import Threads, run_threads
from tightwire.transport.world import current, device, init, shelf, shutdown, switch, workers_per_node

__all__ = [
    "DONE",
    "Counting",
    "Cut",
    "Delay",
    "Done",
    "Drop",
    "Fault",
    "Faulty",
    "Freeze",
    "Kill",
    "Shaped",
    "Single",
    "Switch",
    "Switched",
    "Tally",
    "Threads",
    "Transport",
    "Work",
    "current",
    "device",
    "init",
    "native_bytes",
    "run_threads",
    "shelf",
    "shutdown",
    "switch",
    "workers_per_node",
]
