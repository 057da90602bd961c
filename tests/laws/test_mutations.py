"""A damaged or forged message is refused whole, or is some message: no decoder crashes, or writes where it should not.

Two thousand mutations of each; `pytest tests/laws/test_mutations.py --many` makes a million.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.laws.test_codecs import CODECS, codec_of, message_for, normal
from tightwire.architecture.server.messages import Flag, Header, Kind, pack_state, unpack_state
from tightwire.errors import TensorError, TransportError
from tightwire.runtime.cards import Card
from tightwire.runtime.carried import scales_of
from tightwire.runtime.engines.holdings import claims_of, parcel_of, sizes_of
from tightwire.runtime.meeting import News
from tightwire.runtime.reading import MOST, pack, unpack
from tightwire.transport.join import Absent
from tightwire.transport.messages import Message
from tightwire.transport.seal import Seal

NUMEL = 257
EXTREMES = np.array([0, 1, 0x7F, 0x80, 0xFF], np.uint8)
BATCH = 1000


@pytest.fixture
def times(request: pytest.FixtureRequest) -> int:
    return 1_000_000 if request.config.getoption("--many") else 2_000


def mutations(message: bytes, times: int) -> Iterator[bytes]:
    """Yields the message changed, and one time in three also cut, or with bytes put into it."""
    random = np.random.default_rng(0)
    for rows in changed(message, times, random):
        for number, row in enumerate(rows):
            at = int(random.integers(1, len(row) + 1))
            if number % 6 == 0:
                yield row[:at].tobytes()
            elif number % 6 == 1:
                yield b"".join(
                    [row[:at].tobytes(), random.bytes(int(random.integers(1, 9))), row[at:].tobytes()]
                )
            else:
                yield row.tobytes()


def changed(message: bytes, times: int, random: np.random.Generator) -> Iterator[np.ndarray]:
    """Yields matrices of messages of the same size: bits turned, bytes and runs overwritten, all moved along."""
    whole = np.frombuffer(message, np.uint8)
    for _ in range(0, times, BATCH):
        rows = np.tile(whole, (BATCH, 1))
        every, at = np.arange(BATCH), random.integers(len(whole), size=(BATCH, 3))
        for ways, place in zip(np.split(every, 4), np.split(at, 4), strict=True):
            way = int(ways[0]) // (BATCH // 4)
            for column in place.T if way < 3 else ():
                if way == 0:
                    rows[ways, column] ^= 1 << random.integers(0, 8, len(ways), np.uint8)
                elif way == 1:
                    rows[ways, column] = random.choice(EXTREMES, len(ways))
                else:
                    for step in range(5):
                        rows[ways, (column + step) % len(whole)] = random.integers(
                            0, 256, len(ways), np.uint8
                        )
            if way == 3:
                moved = (np.arange(len(whole)) + place[:, :1]) % len(whole)
                rows[ways] = np.take_along_axis(rows[ways], moved, axis=1)
        yield rows


def tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


@pytest.mark.parametrize("text", CODECS)
def test_codecs(text: str, times: int) -> None:
    codec, x = codec_of(text), normal(NUMEL)
    message = message_for(codec, x)
    codec.encode(x, message, seed=1)
    memory = torch.full((NUMEL + 128,), 7.0)
    out, before = memory[64:-64], memory.clone()
    for rows in changed(message.numpy().tobytes(), times, np.random.default_rng(0)):
        for damaged in torch.from_numpy(rows):
            try:
                codec.decode(damaged, out)
            except TensorError:
                assert torch.equal(out, before[64:-64]), "a refused message was applied in part"
            else:
                out.fill_(7.0)
        assert torch.equal(memory[:64], before[:64]), "memory before the bucket was written to"
        assert torch.equal(memory[-64:], before[-64:]), "memory behind the bucket was written to"


def test_a_message_of_another_size_is_refused() -> None:
    for text in CODECS:
        codec, x = codec_of(text), normal(NUMEL)
        message = message_for(codec, x)
        for wrong in (message[:-1], torch.cat([message, message[:1]]), message[:0]):
            with pytest.raises(TensorError, match="nothing was applied"):
                codec.decode(wrong, torch.zeros(NUMEL))


STATE = {
    "values": {"weight": torch.ones(3, 2), "steps": torch.tensor(7)},
    "optimizer": {"weight": {"exp_avg": torch.zeros(3, 2, dtype=torch.bfloat16), "betas": [0.9, 0.99]}},
    "updates": 5,
}
READERS: dict[str, tuple[bytes, Callable[[bytes], object]]] = {
    "server header": (
        Header(kind=Kind.PUSH, flags=Flag.LATE, clock=7, size=12).to_tensor().numpy().tobytes(),
        lambda data: Header.of(tensor(data[:48].ljust(48, b"\0"))),
    ),
    "server state": (pack_state(STATE).numpy().tobytes(), lambda data: unpack_state(tensor(data))),
    "card of a member": (
        json.dumps(asdict(Card(agreed=3, begun=4, step=9, plan="bsp", facts="ab"))).encode(),
        lambda data: Card.of(data),
    ),
    "news at a meeting": (
        json.dumps(asdict(News(why="turn", step=3, plan="bsp", measured=[{"w": 0.1}, 1e-4, 1e9]))).encode(),
        lambda data: News.of(data),
    ),
    "who is absent": (
        json.dumps(asdict(Absent([0, 2], are_dead=True))).encode(),
        lambda data: Absent.of(data, 3),
    ),
    "scales": (
        json.dumps({"the GradScaler": {"scale": 65536.0, "_growth_tracker": 17}}).encode(),
        scales_of,
    ),
    "state of a newcomer": (
        pack({"weights": torch.ones(3), "step": 7}).numpy().tobytes(),
        lambda data: unpack(data),
    ),
    "holdings": (
        b'[["shard", 5, 4, true, ["weight", "bias"]], ["heard", 1, 1, false, []]]',
        lambda data: claims_of(data, {"weight", "bias"}),
    ),
    "sizes of parcels": (b'{"0": 1234, "2": 77}', lambda data: sizes_of(data, 3)),
    "parcel of a shard": (
        pack_state({"values": {"weight": torch.ones(2)}, "optimizer": {"weight": {"step": 3}}})
        .numpy()
        .tobytes(),
        lambda data: parcel_of(tensor(data), {"weight"}),
    ),
    "liveness": (
        Message(kind="here", sender=2, waits=(0, 1), age_s=1.5, place="train.py:4 in f").to_bytes(),
        lambda data: Message.of(data, 3),
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_readers(name: str, times: int) -> None:
    message, read = READERS[name]
    read(message)
    refused = 0
    for data in mutations(message, times):
        try:
            found = read(data)
        except TransportError:
            found = None
        refused += found is None
        if isinstance(found, Card | News):
            assert 0 <= found.step < MOST
        if isinstance(found, Message):
            assert 0 <= found.sender < 3
            assert all(0 <= rank < 3 for rank in found.waits)
    assert refused > times / 10


def test_a_seal_opens_nothing_that_was_changed(times: int) -> None:
    seal = Seal("secret", "nonce")
    sealed = seal.close(b'{"kind": "verdict", "sender": 1, "waits": [2]}')
    assert all(seal.open(data) is None for data in mutations(sealed, times) if data != sealed)
    assert Seal("other", "nonce").open(sealed) is None


@pytest.mark.parametrize(
    "data", [b"[" * 60_000, b'{"kind":' * 9_000, b"", b"\xff" * 99, b"1e999", b"{}", b"null"]
)
def test_what_is_no_message(data: bytes) -> None:
    assert Message.of(data, 3) is None
