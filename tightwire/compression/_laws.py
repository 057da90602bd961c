"""How each law of codecs is found out; `laws` holds what they say."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from tightwire.compression.codec import Codec
from tightwire.compression.trips import Trip, difficult, normal, rest, round_trip, unexplained
from tightwire.errors import TensorError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Above the declared error by more than this is no accident of a few thousand elements.
_LEEWAY = 1.25
# Of a gradient that stays, when to look first, when last, and which share of an element must have come by then.
_ROUNDS, _MOST_ROUNDS, _LEAST_SENT = 50, 4096, 0.25
_MEANS = 200


class Seen(NamedTuple):
    """What a law saw where it holds: see `LawFound`."""

    num_bytes: int
    error: float


class BrokenError(Exception):
    """A law does not hold; says what was seen."""


@dataclass(frozen=True)
class Subject:
    """A codec, and on what it is tried."""

    codec: Codec
    dtypes: tuple[str, ...]
    sizes: tuple[int, ...]
    seeds: tuple[int, ...]
    device: str

    def inputs(self) -> Iterator[tuple[Tensor, int]]:
        """Yields normal elements of each dtype and size, with a seed."""
        for dtype in self.taken():
            for numel in self.sizes:
                for seed in self.seeds:
                    yield normal(numel, dtype, seed).to(self.device), seed

    def taken(self) -> list[torch.dtype]:
        """Returns the dtypes that the codec takes."""
        import torch

        named: list[torch.dtype] = [vars(torch)[name] for name in self.dtypes]
        return [dtype for dtype in named if dtype == torch.float32 or self._takes(dtype)]

    def _takes(self, dtype: torch.dtype) -> bool:
        try:
            self.trip(normal(8, dtype).to(self.device))
        except TensorError:
            return False
        except BrokenError:
            return True  # the laws will say so
        return True

    def trip(self, x: Tensor, seed: int = 0) -> Trip:
        """Encodes and decodes; what the codec raises, but for what it refuses on purpose, is what was seen."""
        said = self.codec.wire_bytes(x.numel(), x.element_size())
        if not isinstance(said, int) or said < 0:
            raise BrokenError(f"wire_bytes({x.numel()}, {x.element_size()}) is {said!r}, no number of bytes")
        try:
            return round_trip(self.codec, x, seed)
        except TensorError:
            raise
        except Exception as error:
            raise BrokenError(
                f"with {x.numel()} elements of {x.dtype} in a message of {said} bytes, the codec raised "
                f"{type(error).__name__}: {str(error).partition(chr(10))[0].rstrip('. ')}"
            ) from error


def _relative(error: Tensor, x: Tensor) -> float:
    norm = float(x.double().norm())
    return float(error.double().norm()) / norm if norm else 0.0


def _explained(codec: Codec, x: Tensor, trip: Trip, what: str) -> float:
    """Returns the relative error of a message, or says what of the input is neither in it nor left over."""
    if not unexplained(x, trip.decoded, trip.leftover) <= 1:
        if not bool(trip.decoded.isfinite().all() & trip.leftover.isfinite().all()):
            raise BrokenError(f"of {what}, what is decoded or what is left over is not finite")
        place = int(rest(x, trip.decoded, trip.leftover).abs().argmax())
        raise BrokenError(
            f"of {what}, element {place} was {float(x[place]):.6g}; decoded {float(trip.decoded[place]):.6g}, "
            + (
                "and the codec says lossless"
                if codec.lossless
                else f"left over {float(trip.leftover[place]):.6g}"
            )
        )
    return _relative(trip.decoded.double() - x.double(), x)


def _named(x: Tensor, seed: int) -> str:
    return f"{x.numel()} normal elements of {x.dtype} with seed {seed}"


def is_declared_whole(s: Subject) -> Seen:
    codec = s.codec
    said = vars(Codec) | {
        key: value for kind in reversed(type(codec).__mro__) for key, value in vars(kind).items()
    }
    missing = [name for name in ("name", "title", "paper", "combine") if not isinstance(said.get(name), str)]
    if missing:
        raise BrokenError(f"{type(codec).__name__} has no {' and no '.join(missing)}")
    if codec.combine not in ("exact", "lossy", "none"):
        raise BrokenError(f"combine is {codec.combine!r}")
    try:
        hash(codec)
    except TypeError:
        raise BrokenError(f"{type(codec).__name__} cannot be hashed, so it can be changed") from None
    return Seen(0, 0.0)


def fills_its_message(s: Subject) -> Seen:
    import torch

    most = 0
    for x, seed in s.inputs():
        message = s.trip(x, seed).message
        other = torch.full_like(message, 0x5A)
        s.codec.encode(x.clone(), other, seed=seed)
        differs = int((message != other).sum())
        if differs:
            raise BrokenError(
                f"of {message.numel()} bytes for {_named(x, seed)}, {differs} depend on what the memory held before, "
                "or on chance that no seed decides"
            )
        most = max(most, message.numel())
    return Seen(most, 0.0)


def loses_nothing(s: Subject) -> Seen:
    most, worst = 0, 0.0
    for x, seed in s.inputs():
        trip = s.trip(x, seed)
        worst = max(worst, _explained(s.codec, x, trip, _named(x, seed)))
        most = max(most, trip.message.numel())
    return Seen(most, worst)


def loses_nothing_of_extremes(s: Subject) -> Seen:
    most = 0
    for dtype in s.taken():
        for name, x in difficult(dtype).items():
            x = x.to(s.device)
            trip = s.trip(x)
            _explained(s.codec, x, trip, f"{name} of {dtype}")
            most = max(most, trip.message.numel())
    return Seen(most, 0.0)


def needs_the_message_alone(s: Subject) -> Seen:
    import torch

    most = 0
    for x, seed in s.inputs():
        first = s.trip(x, seed)
        s.trip(-3 * x.flip(0), seed + 1)
        again = torch.full_like(x, 7)
        dataclasses.replace(s.codec).decode(first.message, again)
        if not torch.equal(again, first.decoded):
            raise BrokenError(
                f"the message of {_named(x, seed)}, decoded once more after another one was made, says something else"
            )
        most = max(most, first.message.numel())
    return Seen(most, 0.0)


def adds_what_it_decodes(s: Subject) -> Seen:
    import torch

    most, worst = 0, 0.0
    for x, seed in s.inputs():
        trip = s.trip(x, seed)
        base = normal(x.numel(), x.dtype, seed + 1).to(x.device)
        out, expected = base.clone(), base + trip.decoded
        s.codec.decode(trip.message, out, add=True)
        off = (out.double() - expected.double()).abs()
        if not bool((off <= 2 * torch.finfo(x.dtype).eps * (base.abs() + trip.decoded.abs()).double()).all()):
            raise BrokenError(
                f"decode with add=True of {_named(x, seed)} is not what out held plus the message"
            )
        most, worst = max(most, trip.message.numel()), max(worst, _relative(off, x))
    return Seen(most, worst)


def takes_a_message_anywhere(s: Subject) -> Seen:
    import torch

    x = normal(max(s.sizes), torch.float32).to(s.device)
    trip = s.trip(x)
    room = torch.empty(trip.message.numel() + 4, dtype=torch.uint8, device=x.device)
    for offset in (1, 2):
        part, out = room[offset : offset + trip.message.numel()], torch.empty_like(x)
        try:
            s.codec.encode(x.clone(), part)
            s.codec.decode(part, out)
        except RuntimeError as error:
            raise BrokenError(f"at byte {offset} of a larger memory the codec raised {error}") from error
        if not (torch.equal(part, trip.message) and torch.equal(out, trip.decoded)):
            raise BrokenError(f"at byte {offset} of a larger memory the message is another")
    return Seen(trip.message.numel(), 0.0)


def shows_what_is_not_finite(s: Subject) -> Seen:
    most = 0
    for dtype in s.taken():
        for poison in (math.nan, math.inf, -math.inf):
            x = normal(max(s.sizes), dtype).to(s.device)
            x[x.numel() // 2] = poison
            trip = s.trip(x)
            if bool(trip.decoded.isfinite().all()):
                raise BrokenError(
                    f"one element of {x.numel()} of {dtype} was {poison}, and all that came out is finite"
                )
            most = max(most, trip.message.numel())
    return Seen(most, 0.0)


def loses_what_it_declares(s: Subject) -> Seen:
    import torch

    numel, codec = 4097, s.codec
    declared, delta = codec.normal_error(numel), codec.contraction(numel)
    if not isinstance(declared, (int, float)) or not 0 <= declared < math.inf:
        raise BrokenError(f"normal_error({numel}) is {declared!r}, no share of squares")
    if delta is not None and not 0 < delta <= 1:
        raise BrokenError(f"contraction({numel}) is {delta}, which is not in (0, 1]")
    shares, most = [], 0
    for seed in range(4):
        x = normal(numel, torch.float32, seed).to(s.device)
        trip = s.trip(x, seed)
        shares.append(_relative(trip.decoded.double() - x.double(), x) ** 2)
        most = max(most, trip.message.numel())
    found = sum(shares) / len(shares)
    if not found <= _LEEWAY * declared + 1e-9:
        raise BrokenError(
            f"of the squares of {numel} normal elements {found:.3g} are lost; normal_error says {declared:.3g}"
        )
    if delta is not None and not found <= (1 - delta) + 5 * max(max(shares) - min(shares), 1e-6):
        raise BrokenError(
            f"of the squares of {numel} normal elements {found:.3g} are lost; contraction says {1 - delta:.3g}"
        )
    return Seen(most, found**0.5)


def keeps_nothing_back(s: Subject) -> Seen:
    import torch

    sign = normal(65, torch.float32).sign()
    gradient = (sign * torch.linspace(0.5, 1.5, 65)[torch.randperm(65, generator=_seeded())]).to(s.device)
    if s.codec.unbiased and not s.codec.lossless:
        return _is_right_on_average(s, gradient)
    declared = s.codec.contraction(65) or 1 - s.codec.normal_error(65)
    most = min(_MOST_ROUNDS, max(_ROUNDS, math.ceil(16 / max(declared, 1e-3))))
    # What sends at most a threshold of each element is right for gradients that are smaller.
    given = [gradient * scale for scale in (1.0, 1e-2, 1e-4)]
    kept, sent = [torch.zeros_like(x) for x in given], [torch.zeros_like(x) for x in given]
    done, rounds = 0, _ROUNDS
    while True:
        for x, left, total in zip(given, kept, sent, strict=True):
            for number in range(done, rounds):
                trip = s.trip(x + left, number)
                left.copy_(trip.leftover)
                total += trip.decoded
            if bool((total / (rounds * x) >= _LEAST_SENT).all()):
                return Seen(trip.message.numel(), _relative(total / rounds - x, x))
        if rounds >= most:
            break
        done, rounds = rounds, min(most, 4 * rounds)
    share = sent[0] / (rounds * gradient)
    place, never = int(share.argmin()), int((sent[0] == 0).sum())
    raise BrokenError(
        f"of a gradient that stayed the same for {rounds} rounds, element {place} of 65 was sent "
        f"{float(share[place]):.0%} on average, error feedback included; {never} elements were never sent"
    )


def _is_right_on_average(s: Subject, gradient: Tensor) -> Seen:
    import torch

    trips = [s.trip(gradient, seed) for seed in range(_MEANS)]
    decoded = torch.stack([trip.decoded for trip in trips]).double()
    spread, off = decoded.std(0), (decoded.mean(0) - gradient).abs()
    # Five standard errors, and room for what is so seldom that no round may have shown it.
    if not bool((off <= 5 * spread / _MEANS**0.5 + 20 * spread.max() / _MEANS + 1e-6).all()):
        place = int(off.argmax())
        raise BrokenError(
            f"the codec says unbiased, and over {_MEANS} seeds element {place}, which is {float(gradient[place]):.3g}, "
            f"was {float(decoded.mean(0)[place]):.3g} on average"
        )
    return Seen(trips[0].message.numel(), _relative(off, gradient))


def combines_as_it_says(s: Subject) -> Seen:
    import torch

    codec, most, worst = s.codec, 0, 0.0
    if codec.combine != "exact" and codec.sums_as is None:
        return Seen(0, 0.0)
    for numel in s.sizes:
        x, y = (normal(numel, torch.float32, seed).to(s.device) for seed in (1, 2))
        first, second = s.trip(x, 5), s.trip(y, 5)
        total = first.decoded + second.decoded
        found = s.trip(total, 5).decoded
        name = codec.sums_as or "float32"
        if codec.sums_as is not None:
            kind: torch.dtype = vars(torch)[name]
            added = (first.message.view(kind) + second.message.view(kind)).view(torch.uint8)
            codec.decode(added, found)
        allowed = 4 * torch.finfo(vars(torch)[name]).eps
        off = _relative(found - total, total)
        if not off <= allowed:
            raise BrokenError(
                f"the sum of two messages of {numel} elements is off by {off:.1%} from the sum of the two"
            )
        most, worst = max(most, first.message.numel()), max(worst, off)
    return Seen(most, worst)


def _seeded() -> torch.Generator:
    import torch

    return torch.Generator().manual_seed(0)
