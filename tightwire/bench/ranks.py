"""The working half of a bench on the hosts of a lab, and what its first rank has to say."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from tightwire.errors import LabError
from tightwire.lab import Lab, OutputLine


def run_ranks(lab: Lab, module: str, bench: Any, on_message: Callable[[dict[str, Any]], None]) -> None:
    """Runs `python -m module JSON` on every host until all have ended.

    Args:
        lab: whose hosts.
        module: the working half.
        bench: a dataclass; the fields are its argument.
        on_message: called with each object that rank 0 prints, one to a line. All else goes to standard error.

    Raises:
        LabError: one of them failed.
    """

    def on_line(line: OutputLine) -> None:
        if line.stream == "stdout" and line.rank == 0 and line.text.startswith("{"):
            on_message(json.loads(line.text))
        else:
            print(f"[{line.rank}] {line.text}", file=sys.stderr)

    result = lab.run([sys.executable, "-m", module, json.dumps(asdict(bench))], on_line=on_line)
    if not result.ok:
        raise LabError(f"the bench failed: {result.describe()}. Its workers' output says why.")
