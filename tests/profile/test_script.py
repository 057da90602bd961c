import json
import os
import pathlib
import subprocess
import sys

import pytest
import torch.distributed as dist

from tests.command_line import refused
from tightwire.errors import AttachError
from tightwire.profile import Profile
from tightwire.profile.script import profile_script

SCRIPT = """
import sys, torch
from torch import nn
if __name__ == "__main__":
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(int(sys.argv[1])):
        optimizer.zero_grad()
        model(torch.ones(3, 4)).square().sum().backward()
        optimizer.step()
    print("to the end")
"""


@pytest.fixture
def script(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    return path


def test_a_script_is_profiled_as_it_is(script: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = list(sys.argv)
    found = profile_script(script, ["1000"], steps=2)
    assert [p.name for p in found.parameters][-1].startswith("0.")
    assert found.num_bytes == 4 * (4 * 8 + 8 + 8 * 2 + 2)
    assert "to the end" not in capsys.readouterr().out
    assert sys.argv == before


def test_a_script_of_ddp_is_profiled_without_a_launcher(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "ddp.py"
    head = "import torch.distributed as dist\ndist.init_process_group('gloo')\n"
    path.write_text(
        head
        + SCRIPT.replace(
            "    optimizer =", "    model = nn.parallel.DistributedDataParallel(model)\n    optimizer ="
        )
    )
    try:
        found = profile_script(path, ["1000"], steps=2)
    finally:
        dist.destroy_process_group()
    assert found.num_bytes == 232
    assert "RANK" not in os.environ


def test_a_short_script_is_refused(script: pathlib.Path) -> None:
    with pytest.raises(AttachError, match="optimizer steps"):
        profile_script(script, ["3"])


@pytest.mark.parametrize(("code", "says"), [(0, "ended before"), (3, "called sys.exit(3) before")])
def test_a_short_script_that_exits_by_itself_is_refused(
    script: pathlib.Path, tmp_path: pathlib.Path, code: int, says: str
) -> None:
    """Else the command would end as the script does: with 0, without a profile, and without a word."""
    script.write_text(SCRIPT + f"    sys.exit({code})\n")
    said = refused("profile", "--no-codecs", "--out", str(tmp_path / "p.yaml"), str(script), "3")
    assert says in said
    assert not (tmp_path / "p.yaml").exists()


def test_a_device_is_not_for_a_script(script: pathlib.Path, tmp_path: pathlib.Path) -> None:
    told = ("profile", "--device", "a100", "--out", str(tmp_path / "p.yaml"), str(script), "1000")
    assert "--device a100" in refused(*told)


def test_from_the_command_line_to_a_plan(script: pathlib.Path, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "profile.yaml"
    run = [sys.executable, "-m", "tightwire"]
    subprocess.run(
        [*run, "profile", "--no-codecs", "--out", out, str(script), "1000"], check=True, timeout=60
    )
    assert Profile.read(out).num_bytes == 232
    uniform = ["--workers", "4", "--bandwidth", "1gbit"]
    ended = subprocess.run(
        [*run, "plan", "--profile", out, *uniform, "--json"],
        check=True,
        timeout=60,
        capture_output=True,
        text=True,
    )
    answer = json.loads(ended.stdout.splitlines()[-1])
    assert {"plan", "step_s", "low_s", "high_s", "exposed_s", "bytes_per_step", "bound_by"} <= answer[
        "ranking"
    ][0].keys()
    assert answer["why"]
