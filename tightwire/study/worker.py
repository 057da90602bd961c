"""What each worker of a study runs: many trials, one after another, in the same processes.

python -m tightwire.study.worker orders.json
"""

from __future__ import annotations

import json
import pathlib
import sys
import traceback
from dataclasses import asdict
from typing import Any

import torch

from tightwire.study.results import Wanted
from tightwire.study.studies import find
from tightwire.study.trial import train, warm_up
from tightwire.transport import init, shutdown

DEADLINE_S = 60.0


def main(path: pathlib.Path) -> None:
    """Makes the trials of an order; rank 0 prints one JSON object for each.

    A trial that fails ends the job: what its ranks still have under way cannot be told apart from the next one's.
    """
    order: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    transport = init(deadline_s=DEADLINE_S)
    study = find(order["study"])
    tasks = {task.name: task for task in study.tasks}
    scenes = {scene.name: scene for scene in study.scenes}
    for number, row in enumerate(order["trials"]):
        wanted = Wanted(**row)
        scene = scenes[wanted.scene]
        settings = scene.settings_for(wanted.task, wanted.plan)
        if transport.rank == 0:
            _tell({"began": number})
        try:
            if number == 0:
                warm_up(tasks[wanted.task], settings)
            trial = train(wanted, tasks[wanted.task], scene, settings, transport)
        except Exception:
            print(traceback.format_exc(), file=sys.stderr, flush=True)
            sys.exit(1)
        if transport.rank == 0:
            _tell({"trial": asdict(trial)})
    shutdown()


def _tell(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
