"""What a codec costs on a machine, as a value."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from tightwire import files
from tightwire.cluster import require_range

MAX_SECONDS = 1e6


@dataclass(frozen=True, kw_only=True)
class CodecCost:
    """How long a codec takes on this machine, under the load that training puts on it.

    Attributes:
        compression: the codec's text, as in `topk:0.01`.
        encode_s_per_element: per element of the bucket.
        decode_s_per_element: per element of the bucket and message.
        fixed_s: of one encode and one decode together, however small the bucket.
    """

    __pydantic_config__: ClassVar = files.STRICT

    compression: str
    encode_s_per_element: float
    decode_s_per_element: float
    fixed_s: float = 0.0

    def __post_init__(self) -> None:
        require_range("encode_s_per_element", self.encode_s_per_element, 0.0, 1.0)
        require_range("decode_s_per_element", self.decode_s_per_element, 0.0, 1.0)
        require_range("fixed_s", self.fixed_s, 0.0, MAX_SECONDS)

    def times(self, factor: float) -> CodecCost:
        """Returns what it costs where everything takes `factor` times as long, as where workers share cores.

        >>> CodecCost(compression="int8", encode_s_per_element=1e-9, decode_s_per_element=0.0).times(2.0)
        CodecCost(compression='int8', encode_s_per_element=2e-09, decode_s_per_element=0.0, fixed_s=0.0)
        """
        return replace(
            self,
            encode_s_per_element=self.encode_s_per_element * factor,
            decode_s_per_element=self.decode_s_per_element * factor,
            fixed_s=self.fixed_s * factor,
        )
