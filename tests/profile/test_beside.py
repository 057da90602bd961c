"""What a device and exchanges on it take from each other: measured on the emulated one, of which it says nothing."""

from __future__ import annotations

import pathlib

import torch

from tests.traced.training import TRACED
from tightwire.probe import probe
from tightwire.profile import Profile, known
from tightwire.profile.beside import with_device
from tightwire.profile.devices import NCCL_SLOWDOWN, SHARING_UNCERTAINTY
from tightwire.transport import Transport, run_threads
from tightwire.transport.pinned import Pinned

PROFILE = Profile.uniform(layers=1, numel_per_layer=1, forward_s=0.1, backward_s=0.2)


def test_host_memory_has_nothing_to_measure() -> None:
    assert with_device(PROFILE, torch.device("cpu")) is PROFILE


def test_copies_and_kernels_are_measured_and_nccl_stays_what_was_published() -> None:
    TRACED.restart()
    found = with_device(PROFILE, torch.device("traced"), copy_bytes=4096, side=16)
    assert 0 < found.copy_s_per_byte < 1
    assert 0 <= found.kernel_share <= 1
    assert (found.nccl_slowdown, found.sharing_uncertainty) == (NCCL_SLOWDOWN, SHARING_UNCERTAINTY)


def test_codecs_are_timed_where_they_will_run_and_kept_apart(tmp_path: pathlib.Path) -> None:
    TRACED.restart()
    path = tmp_path / "codecs.json"
    costs, pass_s = known.known_costs(["int8"], numel=1000, at=torch.device("traced"), path=path)
    assert costs[0].compression == "int8"
    assert pass_s > 0
    assert "an emulated device" in path.read_text(encoding="utf-8")


def test_a_probe_of_a_device_begins_in_its_memory() -> None:
    TRACED.restart()

    def work(transport: Transport) -> list[str]:
        with TRACED.side(torch.device("traced")):
            at = torch.device("traced")
            return [
                f.program for f in probe(Pinned(transport), budget_s=0.2, programs=["ring"], device=at).fits
            ]

    assert run_threads(2, work, deadline_s=60) == [["ring"], ["ring"]]
    assert not TRACED.races
