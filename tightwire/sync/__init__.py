"""When replicas agree, and on what."""

from tightwire.sync.bsp import Bsp
from tightwire.sync.local import Local
from tightwire.sync.sync import Sync

MEMBERS = (Bsp, Local)

__all__ = ["MEMBERS", "Bsp", "Local", "Sync"]
