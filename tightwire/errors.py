"""Every error that Tightwire raises on purpose.

    TightwireError
    ├── PlanError          (ValueError)    a plan that cannot be read, or that cannot work
    ├── FileError          (ValueError)    a file that cannot be read or written, or with a wrong field
    ├── UnitError          (ValueError)    a size, a rate or a time that cannot be read
    ├── TensorError        (ValueError)    a tensor that a codec or a bucket cannot take
    ├── CodecError         (ValueError)    a codec that breaks a law that training relies on
    ├── ProgramError       (ValueError)    a collective program that is wrong, or cannot exist for this N
    ├── AttachError        (RuntimeError)  a model or an optimizer that cannot be attached as asked
    ├── MismatchError      (RuntimeError)  ranks that disagree about what they are about to do
    ├── DeviceError        (RuntimeError)  a device that cannot do what a round asks of it
    ├── LabError           (RuntimeError)  an emulated cluster that cannot be built
    └── TransportError     (RuntimeError)  bytes that did not move
        └── PeerError                      ... because of certain ranks, which `ranks` names

A message says what was asked, what was seen and what to do, in that order.
"""

from __future__ import annotations

from collections.abc import Sequence


class TightwireError(Exception):
    """Base of the family: `except TightwireError` catches whatever Tightwire raises on purpose."""


class PlanError(TightwireError, ValueError):
    """A plan that cannot be read, or whose four answers do not go together."""


class FileError(TightwireError, ValueError):
    """A file that cannot be read or written; the message names it, and the field where one is wrong."""


class UnitError(TightwireError, ValueError):
    """A size, a rate or a time that cannot be read; the message says how it is written."""


class TensorError(TightwireError, ValueError):
    """A tensor that cannot be encoded, decoded or bucketed: wrong dtype, size or layout."""


class CodecError(TightwireError, ValueError):
    """A codec that breaks a law; the message says which, what was seen, and what to do."""


class ProgramError(TightwireError, ValueError):
    """A collective program that is incorrect, or that does not exist for this number of ranks."""


class AttachError(TightwireError, RuntimeError):
    """A model, an optimizer or a call that does not fit the run it is attached to."""


class MismatchError(TightwireError, RuntimeError):
    """Ranks that disagree; the message names the ranks and the difference, the same on every rank."""


class DeviceError(TightwireError, RuntimeError):
    """A device that cannot do what a round asks of it, as when its memory is full."""


class LabError(TightwireError, RuntimeError):
    """An emulated cluster that cannot be built or run here."""


class TransportError(TightwireError, RuntimeError):
    """Bytes that did not move."""


class PeerError(TransportError):
    """Certain ranks are to blame: they died, froze, left or never joined.

    Attributes:
        ranks: the ranks that the waiting worker blames, ascending.
    """

    def __init__(self, message: str, ranks: Sequence[int]) -> None:
        super().__init__(message)
        self.ranks: tuple[int, ...] = tuple(sorted(ranks))

    def __reduce__(self) -> tuple[type[PeerError], tuple[str, tuple[int, ...]]]:
        return PeerError, (str(self), self.ranks)  # launchers and trainers pass errors between processes
