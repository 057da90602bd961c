"""torchrun starts the workers anew when one dies: the next attempt joins at once, and goes on from the last step."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import os, signal, torch, tightwire as tw
rank, attempt = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
tw.init(deadline_s=20)
model = torch.nn.Linear(8, 8)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
with tw.attach(model, optimizer, "bsp", remember=1) as run:
    began = run.step
    while run.step < 6:
        if run.step == 2 + attempt and rank == attempt and attempt < 2:
            os.kill(os.getpid(), signal.SIGKILL)
        optimizer.zero_grad()
        model(torch.ones(2, 8)).sum().backward()
        optimizer.step()
print(f"rank {rank} is done at attempt {attempt}, which began after step {began}", flush=True)
tw.shutdown()
"""


def test_elastic_restart(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    run = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "--max-restarts", "2", str(script)],
        env={**os.environ, "TIGHTWIRE_SECRET": "of this job", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    # Two processes write to one pipe: their lines may touch.
    assert sorted(re.findall(r"rank \d is done at attempt \d, which began after step \d", run.stdout)) == [
        "rank 0 is done at attempt 2, which began after step 3",
        "rank 1 is done at attempt 2, which began after step 3",
    ]
