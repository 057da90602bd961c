"""Tests again and again beside a busy core: one that fails once in fifty runs is a defect of the product, or of itself.

    python -m tests.again 20
    python -m tests.again 50 tests/lab/test_lab.py

runs those of real processes, of transports and of the lab, or what is named, so often, and tells what failed and how
often.
"""

from __future__ import annotations

import collections
import re
import subprocess
import sys
import time

ROOMS = ("tests/processes", "tests/transport", "tests/lab")
BUSY = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    pass"  # also if this is killed, it ends
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)


def main(times: int, tests: list[str]) -> int:
    """Returns the exit code: 1 if anything failed."""
    failures: collections.Counter[str] = collections.Counter()
    busy = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        for number in range(1, times + 1):
            began_s = time.monotonic()
            command = [sys.executable, "-m", "pytest", "-q", "-rfE", "-p", "no:cacheprovider", *tests]
            run = subprocess.run(command, capture_output=True, text=True, check=False)
            failed = FAILED.findall(run.stdout)
            failures.update(failed)
            if run.returncode and not failed:
                failures["pytest itself"] += 1
            how = f"{len(failed)} failed" if run.returncode else "none failed"
            print(f"{number} of {times}, {time.monotonic() - began_s:.0f} s: {how}", flush=True)
            if run.returncode:
                print(run.stdout[-20_000:], run.stderr[-2000:], sep="\n", flush=True)
    finally:
        busy.kill()
        busy.wait()
    for test, count in failures.most_common():
        print(f"{count} of {times}: {test}")
    return 1 if failures else 0


if __name__ == "__main__":
    if len(sys.argv) < 2 or not sys.argv[1].isdigit():
        sys.exit(__doc__)
    sys.exit(main(int(sys.argv[1]), sys.argv[2:] or list(ROOMS)))
