"""What was assumed of workers' devices: how messages leave them, and what exchanges take from compute."""

from __future__ import annotations

from collections.abc import Iterator

from tightwire.cluster import Cluster
from tightwire.profile import Profile
from tightwire.units import print_rate


def explain_devices(profile: Profile, cluster: Cluster) -> Iterator[str]:
    """Yields what predictions took for granted of devices; nothing where compute is in host memory, or alone."""
    if not profile.is_apart or cluster.workers == 1:
        return
    pcie = f"{print_rate(1 / profile.copy_s_per_byte)} of PCIe each way"
    by_nccl = (
        f"NCCL, whose kernels make compute take {profile.nccl_slowdown:.2f} times as long while they run"
    )
    by_host = f"pinned memory and Gloo ({pcie}, copied piece by piece beside the wire)"
    if cluster.over == "pinned":
        way = f"{by_host}, inside a node too, where they do not take NVLink"
    elif cluster.over == "nccl-inside":
        way = f"{by_nccl}, inside a node, and by {by_host} to others"
    else:
        way = by_nccl
    unknown = ""
    if profile.sharing_uncertainty:
        unknown = " These shares are a published mean and a bound, and not of this model."
    yield (
        f"Devices: messages are taken to leave them by {way}; codecs' kernels take {profile.kernel_share:.0%} of their "
        f"time from compute.{unknown}"
    )
