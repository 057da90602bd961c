"""What kept results are named, and say of their making: the command, the machine and the commit."""

from __future__ import annotations

import os
import pathlib
import platform
import shlex
import subprocess
import sys
import time
from importlib import metadata

from tightwire.errors import FileError


def require_results(out: pathlib.Path) -> None:
    """Refuses another ending than .json: the page of the results stands beside them, under their name.

    Raises:
        FileError: another ending than .json.
    """
    if out.suffix != ".json":
        raise FileError(
            f"--out {out}: results are kept as .json, as in results/{out.stem}.json; a page stands beside."
        )


def told(page: str, command: str, machine: str) -> str:
    """Returns a page of Markdown that says beneath its heading what made it.

    >>> told("# Results\\n\\nMany.\\n", "tightwire map", "2 cores")
    '# Results\\n\\nMade by `tightwire map` on 2 cores.\\n\\nMany.\\n'
    """
    heading, _, rest = page.partition("\n\n")
    return f"{heading}\n\nMade by `{command}` on {machine}.\n\n{rest}"


def command() -> str:
    """Returns the command line that is running."""
    return shlex.join(["tightwire", *sys.argv[1:]])


def machine() -> str:
    """Returns cores, versions, the commit and the date."""
    versions = f"Python {platform.python_version()}, PyTorch {metadata.version('torch')}"
    cores = f"{os.cpu_count()} cores ({platform.machine()})"
    return f"{cores}, {versions}, {commit()}, {time.strftime('%Y-%m-%d')}"


def commit() -> str:
    """Returns the commit of the checkout that runs, with + where files differ; the version where there is none."""
    here = pathlib.Path(__file__).parent
    try:
        git = ["git", "-C", str(here), "describe", "--always", "--abbrev=8", "--exclude=*", "--dirty=+"]
        told = subprocess.run(git, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        told = None
    if told is None or told.returncode or not _is_ours(here):
        return f"tightwire {metadata.version('tightwire')}"
    return f"commit {told.stdout.strip()}"


def _is_ours(here: pathlib.Path) -> bool:
    """Whether the checkout is of this package, and not of the project whose environment it is installed in."""
    return (here.parents[1] / "pyproject.toml").exists()
