"""Where a command writes is refused before its work begins: a walk over all options that name a file or a folder."""

import pathlib
import sys

import pytest

from tightwire.cli import application
from tightwire.errors import FileError

NUMBERS = "--gradients 20MB --compute 380ms --workers 4 --bandwidth 200mbit"
# What each command needs beside the option before it looks where it writes.
CALLS = {
    "tour": "",
    "probe": "--workers 2",
    "profile": "--model bert-base --device a100",
    "cluster new": "dgx-a100",
    "cluster import": "nccl-tests missing.txt",
    "cluster synthesise": "missing.yaml",
    "plan": NUMBERS,
    "simulate": f"{NUMBERS} bsp",
    "parallel": "llama3-70b --cluster missing.yaml",
    "map": "",
    "jobs": "missing.yaml",
    "bench chaos": "",
    "bench goodput": "",
    "bench gpu": "--emulate",
    "study compression": "",
    "study compression-race": "",
    "study architecture": "",
    "study sync": "",
    "study compression-rates": "",
    "study architecture-rates": "",
    "study sync-rates": "",
    "study seven-methods": "",
    "study race": "",
    "study table": "",
    "study layers": "",
    "study map": "",
    "validate": "",
}
READ = {"profile --trace", "plan --profile", "plan --cluster", "simulate --profile", "simulate --cluster"}
READ |= {"lab run --cluster", "parallel --cluster"}
ENDINGS = {"plot": "plot.html", "page": "page.html", "trace": "trace.json", "out": "out.json"}


def options() -> list[str]:
    """Every option that takes a path: the command and its name."""
    root, found = application(), []
    for name in root.list_commands(None):
        command = root.get_command(None, name)
        for path, one in (
            {f"{name} {sub}": c for sub, c in command.commands.items()}
            if hasattr(command, "commands")
            else {name: command}
        ).items():
            found += [
                f"{path} {parameter.opts[0]}"
                for parameter in one.params
                if parameter.param_type_name == "option"
                and "Path" in repr(parameter.type_descriptor.annotation)
            ]
    return found


def test_a_place_that_nobody_can_write_to_is_refused_before_the_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for told in sorted(set(options()) - READ):
        path, _, option = told.rpartition(" ")
        place = f"/proc/{ENDINGS.get(option[2:], '')}"
        with pytest.raises(FileError, match=r"/proc\S* cannot be written"):
            application().main([*path.split(), option, place, *CALLS[path].split()], standalone_mode=False)
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_nothing_can_draw_is_refused_before_the_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "plotly", None)  # as where tightwire[report] is not installed
    drawn = [told for told in sorted(set(options())) if told.endswith((" --plot", " --page"))]
    assert len(drawn) >= 5
    asked = [*(f"{told} picture.html" for told in drawn), "tour", "parallel --out picture.html"]
    for told in asked:
        path = told.partition(" --")[0]
        with pytest.raises(FileError, match="plotly, which is not installed"):
            application().main([*told.split(), *CALLS[path].split()], standalone_mode=False)
    assert list(tmp_path.iterdir()) == []
