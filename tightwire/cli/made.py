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
    """Returns the commit of the checkout that runs, with + where its code differs; the version where there is none."""
    here = pathlib.Path(__file__).parents[1]
    described = _git(here, "describe", "--always", "--abbrev=8", "--exclude=*")
    if described is None or not _is_ours(here):
        return f"tightwire {metadata.version('tightwire')}"
    return f"commit {described}{'+' if _git(here, 'status', '--porcelain', '--', '.') else ''}"


def _git(at: pathlib.Path, *asked: str) -> str | None:
    """Returns what git says in a folder; None where there is no git, or no checkout."""
    try:
        told = subprocess.run(["git", "-C", str(at), *asked], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if told.returncode else told.stdout.strip()


def _is_ours(here: pathlib.Path) -> bool:
    """Whether the checkout is of this package, and not of the project whose environment it is installed in."""
    return (here.parent / "pyproject.toml").exists()
