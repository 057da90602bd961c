"""`tightwire methods --check`: the laws of codecs, held against one of them."""

from __future__ import annotations

from dataclasses import asdict

from tightwire.catalogue import parse_compression
from tightwire.cli.table import print_rows, say, say_json
from tightwire.compression import Codec
from tightwire.compression.laws import codec_named, laws_of
from tightwire.errors import CodecError, PlanError
from tightwire.extensions import import_source


def check(source: str, *, as_json: bool) -> None:
    """Prints what each law finds of a codec.

    Args:
        source: its text in plans, `FILE.py:CLASS`, `FILE.py:TEXT`, or `FILE.py` where that holds one codec.
        as_json: whether to end with one line of JSON.

    Raises:
        CodecError: a law is broken.
        PlanError: there is no such codec.
    """
    codec = find_codec(source)
    found = list(laws_of(codec))
    rows = [
        (
            one.law,
            "broken" if one.broken else "ok",
            f"{one.num_bytes:,}" if one.num_bytes else "",
            _error(one.error),
        )
        for one in found
    ]
    if as_json:
        say_json({"codec": str(codec), "laws": [asdict(one) for one in found]})
    else:
        say(f"{codec}: {codec.title}", "")
        print_rows(("law", "found", "bytes", "error"), rows)
    broken = [one for one in found if one.broken]
    if broken:
        first, more = broken[0], len(broken) - 1
        others = f" ({more} more {'is' if more == 1 else 'are'} broken, perhaps by the same.)" if more else ""
        raise CodecError(f"{codec} breaks a law of codecs: {first.law}. Seen: {first.broken}{others}")


def _error(error: float) -> str:
    return f"{error:.2g}" if error else ""


def find_codec(source: str) -> Codec:
    """Returns the codec that `source` names; see `check`.

    Raises:
        PlanError: there is none, or there are several.
    """
    file, dot_py, name = source.partition(".py")
    if not dot_py or (name and not name.startswith(":")):
        return codec_named(source)
    module = import_source(f"{file}.py")
    name = name[1:]
    own = {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, Codec) and value.__module__ == module.__name__
    }
    if not name and len(own) == 1:
        (name,) = own
    if name in own:
        return _example_of(own[name])
    texts = [text for text in own.values() if text.name == name.partition(":")[0]]
    if texts:
        return codec_named(name)
    listed = ", ".join(f"{file}.py:{key}" for key in own) or "none: a codec is a class derived from Codec"
    kind, _, arguments = name.partition(":")
    if kind in own:
        listed = f"{file}.py:{kind}; with arguments it is written as in plans, {file}.py:{own[kind].name}:{arguments}"
    raise PlanError(f"{source} names no codec; in {file}.py there is {listed}.")


def _example_of(kind: type[Codec]) -> Codec:
    try:
        return kind()
    except (TypeError, ValueError):
        member = parse_compression(kind.example)[0] if kind.example else None
    if not isinstance(member, kind):
        raise PlanError(
            f"{kind.__name__} takes arguments: write one setting, as in --check FILE.py:{kind.name}:0.1, or give the "
            f'class example = "{kind.name}:0.1" and put @register above it.'
        )
    return member
