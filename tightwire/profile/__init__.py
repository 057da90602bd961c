"""What a model costs on a worker: the values, and (loaded on use, they need torch) the measurements."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tightwire.profile.values import CodecCost, ParameterProfile, Profile

if TYPE_CHECKING:
    from tightwire.profile.codecs import measure_codecs
    from tightwire.profile.model import measure

__all__ = ["CodecCost", "ParameterProfile", "Profile", "measure", "measure_codecs"]


def __getattr__(name: str) -> Any:
    """Loads the measurements on first use: they need torch, and the values do not."""
    if name == "measure":
        from tightwire.profile.model import measure

        return measure
    if name == "measure_codecs":
        from tightwire.profile.codecs import measure_codecs

        return measure_codecs
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
