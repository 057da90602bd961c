"""When replicas agree, and on what."""

from tightwire.sync.acco import Acco
from tightwire.sync.adacomm import AdaComm
from tightwire.sync.asp import Asp
from tightwire.sync.async_diloco import AsyncDiLoCo
from tightwire.sync.backup import Backup
from tightwire.sync.bsp import Bsp
from tightwire.sync.delayed import Delayed
from tightwire.sync.diloco import DiLoCo
from tightwire.sync.easgd import EASGD
from tightwire.sync.edit import EDiT
from tightwire.sync.fedavg import FedAvg
from tightwire.sync.gaia import Gaia
from tightwire.sync.hierarchical_local import HierarchicalLocal
from tightwire.sync.lag import Lag
from tightwire.sync.local import Local
from tightwire.sync.muloco import MuLoCo
from tightwire.sync.postlocal import PostLocal
from tightwire.sync.rounds import NormGuard, Outer, Quorum, Rounds
from tightwire.sync.served import Served
from tightwire.sync.slowmo import SlowMo
from tightwire.sync.sparta import Sparta
from tightwire.sync.ssp import Ssp
from tightwire.sync.sync import Sync

MEMBERS: tuple[type[Sync], ...] = (
    Bsp,
    Local,
    PostLocal,
    HierarchicalLocal,
    AdaComm,
    EASGD,
    SlowMo,
    DiLoCo,
    EDiT,
    MuLoCo,
    FedAvg,
    Delayed,
    Acco,
    Lag,
    Gaia,
    Sparta,
    Backup,
    Ssp,
    Asp,
    AsyncDiLoCo,
)

__all__ = [
    "EASGD",
    "MEMBERS",
    "Acco",
    "AdaComm",
    "Asp",
    "AsyncDiLoCo",
    "Backup",
    "Bsp",
    "Delayed",
    "DiLoCo",
    "EDiT",
    "FedAvg",
    "Gaia",
    "HierarchicalLocal",
    "Lag",
    "Local",
    "MuLoCo",
    "NormGuard",
    "Outer",
    "PostLocal",
    "Quorum",
    "Rounds",
    "Served",
    "SlowMo",
    "Sparta",
    "Ssp",
    "Sync",
]
