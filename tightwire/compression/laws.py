"""The laws of codecs, held against one codec: what the rest of Tightwire relies on, found out in a moment.

A codec that breaks one trains in silence, and badly: an element in the wrong place is a model that learns less. So a
codec from outside this package is held to them, in a quick form, before its first message; see `check_codec`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tightwire.catalogue import is_from_outside, parse_compression
from tightwire.compression import _laws as find
from tightwire.compression.codec import Codec
from tightwire.errors import CodecError, PlanError, TensorError

if TYPE_CHECKING:
    import torch

# Codecs from outside that hold, with the dtype and the device where they were tried.
_checked: set[tuple[type[Codec], str, str, str]] = set()
DTYPES = Codec.dtypes
WIDE = (
    "(It holds for all dtypes but float64. A codec that computes in float32 takes no float64: give the class "
    'dtypes = ("float32", "bfloat16", "float16"), and call check in encode and decode.)'
)


@dataclass(frozen=True, kw_only=True)
class LawFound:
    """What one law found of a codec.

    Attributes:
        law: what it says.
        num_bytes: of the largest message that it saw.
        error: the largest that it saw, relative to the norm of what was encoded: of the decoded message, or for laws
            that allow none, of what is not explained.
        broken: what was seen and what to do; empty where the law holds.
    """

    law: str
    num_bytes: int = 0
    error: float = 0.0
    broken: str = ""


def check_codec(codec: Codec | str, *, dtype: torch.dtype | None = None) -> tuple[LawFound, ...]:
    """Holds one codec to the laws of codecs, on a few odd sizes and seeds, in well under a second.

    Args:
        codec: a value, or its text in plans once it is registered: `topk:0.01`.
        dtype: of what is encoded; by default each dtype in turn that the codec takes.

    Returns:
        What each law found.

    Raises:
        CodecError: a law is broken; says which, what was seen and what to do.
        PlanError: a text that names no codec.
    """
    names = DTYPES if dtype is None else (str(dtype).removeprefix("torch."),)
    found = tuple(laws_of(codec_named(codec) if isinstance(codec, str) else codec, dtypes=names))
    _require(codec, found)
    return found


def codec_named(text: str) -> Codec:
    """Reads the text of one codec, without stages.

    Raises:
        PlanError: it names something else.
    """
    first, *others = parse_compression(text)
    if others or not isinstance(first, Codec):
        raise PlanError(f"{text} is no codec: give one alone, without stages, as in topk:0.01.")
    return first


def check_before_use(codec: Codec, dtype: torch.dtype, device: torch.device) -> None:
    """Holds a codec from outside this package to the laws, quickly and once, before its first message.

    Raises:
        CodecError: a law is broken.
    """
    name, what = str(dtype).removeprefix("torch."), (type(codec), str(codec), str(dtype), str(device))
    if not is_from_outside(codec) or what in _checked:
        return
    _require(codec, laws_of(codec, dtypes=(name,), sizes=(7, 1, 257), seeds=(0,), device=str(device)))
    _checked.add(what)


def _require(codec: Codec | str, found: Iterable[LawFound]) -> None:
    for one in found:
        if one.broken:
            raise CodecError(
                f"{codec} breaks a law of codecs: {one.law}. Seen: {one.broken} "
                f"(`tightwire methods --check` shows all laws.)"
            )


def laws_of(
    codec: Codec,
    *,
    dtypes: Sequence[str] = DTYPES,
    sizes: Sequence[int] = (7, 1, 0, 257, 1000),
    seeds: Sequence[int] = (0, 1, 2),
    device: str = "cpu",
) -> Iterator[LawFound]:
    """Yields what each law finds; those behind one that is broken may find what follows from it.

    Args:
        codec: to be held to them.
        dtypes: of what is encoded. Except float32, those that the codec refuses are left out.
        sizes: how many elements are encoded.
        seeds: of elements and messages.
        device: where.
    """
    subject = find.Subject(codec, tuple(dtypes), tuple(sizes), tuple(seeds), device)
    for law in LAWS:
        found = _found(law, subject)
        yield (
            replace(found, broken=f"{found.broken} {WIDE}")
            if found.broken and _is_wide(law, subject)
            else found
        )


def _is_wide(law: Law, subject: find.Subject) -> bool:
    """Whether a law that is broken holds without float64."""
    narrow = tuple(dtype for dtype in subject.dtypes if dtype != "float64")
    return (
        bool(narrow) and narrow != subject.dtypes and not _found(law, replace(subject, dtypes=narrow)).broken
    )


def _found(law: Law, subject: find.Subject) -> LawFound:
    says, what_to_do, find_out = law
    try:
        seen = find_out(subject)
    except (find.BrokenError, TensorError) as broken:
        return LawFound(law=says, broken=f"{str(broken).rstrip('.')}. {what_to_do}")
    except Exception as error:  # whatever a codec of one's own raises
        said = f"{type(error).__name__}: {error}".rstrip(". ")
        return LawFound(law=says, broken=f"the codec raised {said}. {what_to_do}")
    return LawFound(law=says, num_bytes=seen.num_bytes, error=seen.error)


Law = tuple[str, str, Callable[[find.Subject], find.Seen]]
# What each says, what to do where it is broken, and what finds out.
LAWS: tuple[Law, ...] = (
    (
        "a codec is a frozen value that says what it is",
        'Put @dataclass(frozen=True) above the class, and give it name, title, paper and combine ("exact", "lossy" or '
        '"none").',
        find.is_declared_whole,
    ),
    (
        "encode fills exactly the message that wire_bytes says, the same for the same seed",
        "Let wire_bytes(numel, itemsize) return what encode writes at each size, write every byte, and draw from a "
        "generator with the seed that encode is given.",
        find.fills_its_message,
    ),
    (
        "input − leftover is what the message decodes to",
        "Subtract in encode, in x, exactly what decode will write, at the same places; let decode write every "
        "element of out, zeros too.",
        find.loses_nothing,
    ),
    (
        "decode needs the message alone",
        "Put into the message whatever decode must know, indices and scales too; keep nothing in the codec.",
        find.needs_the_message_alone,
    ),
    (
        "decode with add=True adds the message to out",
        "Write `out.add_(values) if add else out.copy_(values)`, where out already holds other workers' values.",
        find.adds_what_it_decodes,
    ),
    (
        "a message may begin at any byte",
        "Copy bytes instead of a view of wider elements: message.copy_(values.view(torch.uint8)), and "
        "message.clone().view(...) in decode.",
        find.takes_a_message_anywhere,
    ),
    (
        "zeros and extremes stay finite and lose nothing",
        "Divide by no scale that may be 0, and clamp what the format cannot hold before it is rounded.",
        find.loses_nothing_of_extremes,
    ),
    (
        "what is not finite is seen in what is decoded",
        "Let NaN and infinities through (clamp turns an infinity into a number): training then skips the step.",
        find.shows_what_is_not_finite,
    ),
    (
        "no more is lost than normal_error and contraction declare",
        "Declare what is measured here, or None for contraction; or mend what loses it.",
        find.loses_what_it_declares,
    ),
    (
        "of a gradient that stays the same, every element is sent",
        "Leave in x what is not sent, so that error feedback sends it later, and choose by what is there and not by "
        "place; or send another part each round, by the seed.",
        find.keeps_nothing_back,
    ),
    (
        "messages combine as combine and sums_as say",
        'Declare combine = "lossy", or "none", and sums_as = None.',
        find.combines_as_it_says,
    ),
)
