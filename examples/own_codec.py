"""A codec of one's own: 8-bit floats. `tightwire --import examples/own_codec.py COMMAND` knows it in plans."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

import tightwire as tw
from tightwire.catalogue import register
from tightwire.compression import Codec, Combine
from tightwire.compression.checks import check

LARGEST = torch.finfo(torch.float8_e5m2).max


@register
@dataclass(frozen=True)
class E5M2(Codec):
    """Sends floats of 5 exponent and 2 mantissa bits."""

    name: ClassVar[str] = "e5m2"
    title: ClassVar[str] = "floats of 8 bits, unscaled"
    paper: ClassVar[str] = "this example"
    combine: ClassVar[Combine] = "none"

    def wire_bytes(self, numel: int, itemsize: int = 4) -> int:
        return numel

    def normal_error(self, numel: int) -> float:
        return 0.0027  # of normal elements: the mean squared rounding to 2 bits

    def encode(self, x: Tensor, message: Tensor, *, seed: int = 0) -> None:
        check(self, x, message)  # refuses what does not fit, before anything is written
        finite = x.isfinite()  # NaN and infinities go through, so that training skips the step
        sent = torch.where(finite, x.clamp(-LARGEST, LARGEST), x).to(torch.float8_e5m2)
        message.copy_(sent.view(torch.uint8))
        x.sub_(sent.to(x.dtype))  # what the message does not carry stays behind

    def decode(self, message: Tensor, out: Tensor, *, add: bool = False) -> None:
        check(self, out, message)
        values = message.view(torch.float8_e5m2).to(out.dtype)
        out.add_(values) if add else out.copy_(values)


if __name__ == "__main__":
    tw.check_codec(E5M2())  # an error if it breaks a law: what tightwire methods --check prints
    print(tw.Plan.parse("bsp/allreduce/e5m2+ef"))
