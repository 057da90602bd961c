"""What kept results say of their making: the command and the machine."""

from __future__ import annotations

import os
import platform
import shlex
import sys
import time


def command() -> str:
    """Returns the command line that is running."""
    return shlex.join(["tightwire", *sys.argv[1:]])


def machine() -> str:
    """Returns cores, versions and the date."""
    import torch

    versions = f"Python {platform.python_version()}, PyTorch {torch.__version__}"
    return f"{os.cpu_count()} cores ({platform.machine()}), {versions}, {time.strftime('%Y-%m-%d')}"
