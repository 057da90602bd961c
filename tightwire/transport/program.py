"""Where this process's program is: what a rank that is waited for says of itself."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Final

_PACKAGE: Final = str(Path(__file__).parent.parent)
_STANDARD: Final = (str(Path(threading.__file__).parent), "<frozen")


def is_blocked() -> bool:
    """Tells whether the main thread waits inside Tightwire: its innermost frame but the standard library's is ours."""
    frame = _main_frame()
    while frame is not None and _is_standard(frame):
        frame = frame.f_back
    return frame is not None and frame.f_code.co_filename.startswith(_PACKAGE)


def place() -> str:
    """Returns the main thread's innermost frame that is neither ours, nor of a library: "train.py:45 in evaluate"."""
    frame = _main_frame()
    while frame is not None:
        name = frame.f_code.co_filename
        if not (name.startswith(_PACKAGE) or _is_standard(frame) or "site-packages" in name):
            return f"{Path(name).name}:{frame.f_lineno} in {frame.f_code.co_name}"
        frame = frame.f_back
    return ""


def _main_frame() -> FrameType | None:
    return sys._current_frames().get(threading.main_thread().ident or 0)


def _is_standard(frame: FrameType) -> bool:
    name = frame.f_code.co_filename
    return name.startswith(_STANDARD) and "site-packages" not in name
