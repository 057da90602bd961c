"""torch.distributed as a transport: Gloo connections of our own between processes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final, final

import torch
import torch.distributed as dist
from torch import Tensor

from tightwire.transport.base import Transport, Work, check_group, check_message, check_summable
from tightwire.transport.blame import Verdict, Wait, accuse, describe

c10d: Final[Any] = dist  # torch does not type its stores and backends
GLOO_SUMS: Final = frozenset({"float32", "float64", "float16", "bfloat16", "uint8", "int8", "int32", "int64"})


@final
class TorchDistributed(Transport):
    """One process of a torch.distributed world, over Gloo connections of its own.

    Nothing here touches the process groups of the user: collectives on WORLD do not interfere.
    """

    native_dtypes = GLOO_SUMS

    def __init__(self, store: Any, rank: int, size: int, *, deadline_s: float = 30.0) -> None:
        self.rank = rank
        self.size = size
        self.deadline_s = deadline_s
        self._store = store
        self._timeout = timedelta(seconds=deadline_s)
        self._gloo = c10d.ProcessGroupGloo(store, rank, size, self._timeout)
        self._children = itertools.count()

    def isend(self, tensor: Tensor, dst: int, tag: int) -> Work:
        """Starts a Gloo send."""
        check_message(self, tensor, dst)
        return _Pending(self, self._gloo.send([tensor], dst, tag), dst, "send", tensor, tag)

    def irecv(self, tensor: Tensor, src: int, tag: int) -> Work:
        """Starts a Gloo receive."""
        check_message(self, tensor, src)
        return _Pending(self, self._gloo.recv([tensor], src, tag), src, "receive", tensor, tag)

    def all_reduce(self, tensor: Tensor) -> Work:
        """Starts Gloo's all-reduce."""
        check_summable(self, tensor)
        work: Work = self._gloo.allreduce([tensor])
        return work

    def exchange(self, payload: bytes) -> list[bytes]:
        """Returns every rank's payload, by rank: an all-gather of sizes, then one of padded payloads."""
        sizes = [int(n) for n in self._gather(torch.tensor([len(payload)]))]
        mine = torch.zeros(max(sizes), dtype=torch.uint8)
        if payload:
            mine[: len(payload)] = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
        return [part[:n].numpy().tobytes() for part, n in zip(self._gather(mine), sizes, strict=True)]

    def channel(self) -> Transport:
        """Returns a transport over the same ranks with TCP connections of its own."""
        store = c10d.PrefixStore(f"channel{next(self._children)}", self._store)
        return TorchDistributed(store, self.rank, self.size, deadline_s=self.deadline_s)

    def group(self, ranks: Sequence[int]) -> Transport | None:
        """Returns a transport over `ranks` with TCP connections of its own; None for ranks outside."""
        check_group(self, ranks)
        store = c10d.PrefixStore(f"group{next(self._children)}", self._store)
        if self.rank not in ranks:
            return None
        return TorchDistributed(store, list(ranks).index(self.rank), len(ranks), deadline_s=self.deadline_s)

    def barrier(self) -> None:
        """Blocks until every rank has called it."""
        self.exchange(b"")

    def close(self) -> None:
        """Closes the connections."""
        self._gloo = None

    def _gather(self, tensor: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        if tensor.numel():
            self._gloo.allgather([parts], [tensor]).wait()
        return parts


@final
class _Pending:
    __slots__ = ("_owner", "_peer", "_tag", "_tensor", "_verb", "_work")

    def __init__(
        self, owner: TorchDistributed, work: Any, peer: int, verb: str, tensor: Tensor, tag: int
    ) -> None:
        self._owner, self._work, self._peer = owner, work, peer
        self._verb, self._tensor, self._tag = verb, tensor, tag

    def wait(self) -> None:
        try:
            self._work.wait(self._owner._timeout)
        except RuntimeError as error:
            wait = Wait(frozenset({self._peer}), describe(self._verb, self._tensor.nbytes, self._tag))
            verdict = Verdict((self._peer,), "silent")
            raise accuse(verdict, waiting=wait, deadline_s=self._owner.deadline_s) from error
