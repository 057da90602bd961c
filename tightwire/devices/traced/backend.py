"""A torch device written in Python: its memory is host memory, and its operations are queued on streams.

Torch's own seam for devices made elsewhere (`PrivateUse1`) sends every operation on a tensor of such a device through
one function. Views are made at once, for they touch no values; what waits for values (`item`, a copy to ordinary
host memory) drains the stream first, as on CUDA; everything else is queued, and done on the bytes later.

Once made, the device belongs to the process: torch has one such name. Memory of a run is given back together.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from tightwire.devices.traced.streams import Span, Stream, Streams

KIND: Final = "traced"

_CPU: Final = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
_aten: Final = torch.ops.aten
# Touch shapes alone; their CPU kernels look at nothing else.
_VIEWS: Final = frozenset(
    {
        "as_strided",
        "view",
        "_reshape_alias",
        "unfold",
        "alias",
        "set_",
        "view_as_real",
        "_conj",
        "_unsafe_view",
    }
)
# Wait for values.
_SYNCHRONOUS: Final = frozenset(
    {
        "_local_scalar_dense",
        "equal",
        "nonzero",
        "masked_select",
        "unique_dim",
        "_unique2",
        "bincount",
        "is_set_to",
    }
)


class Backend:
    """Memory and operations of the device.

    Attributes:
        scheduler: of the present run.
    """

    def __init__(self) -> None:
        self.scheduler = Streams()
        self._library: Any = None
        # Each with the tensor that it was given for.
        self._blocks: dict[int, tuple[Tensor, weakref.ref[Tensor]]] = {}
        self._pinned: dict[int, Tensor] = {}
        self._given: dict[int, int] = {}  # bytes, by thread

    def register(self) -> None:
        """Makes the device known to torch, once in a process."""
        if self._library is not None:
            return
        from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

        _name_all_operators()
        _setup_privateuseone_for_python_backend(KIND)
        # Torch's stand-in for a device's module lacks what autocast asks of one.
        module: Any = torch.get_device_module(KIND)
        module.get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16]
        self._library = torch.library.Library("_", "IMPL")
        self._library.fallback(self._dispatch, "PrivateUse1")

    def restart(self, seed: int, haste: float) -> None:
        """Forgets all memory and streams, and begins a run under another adversary.

        What a thread or a cache still holds is kept: a tensor of this device does not own its memory.
        """
        self.scheduler = Streams(seed, haste)
        self._blocks = {at: held for at, held in self._blocks.items() if held[1]() is not None}
        self._given.clear()
        self._pinned.clear()

    @property
    def allocated_bytes(self) -> int:
        """Bytes of device memory that this thread, which is a rank, was given in the present run."""
        with self.scheduler.lock:
            return self._given.get(threading.get_ident(), 0)

    def pin(self, num_bytes: int) -> Tensor:
        """Returns host memory of which accesses are noted."""
        block = torch.full((num_bytes,), 0xA5, dtype=torch.uint8)
        with self.scheduler.lock:
            self._pinned[block.data_ptr()] = block
        return block

    def spans(self, tensor: Tensor) -> list[Span]:
        """Returns the bytes that a tensor covers, of device memory or of pinned memory; none of ordinary memory."""
        if tensor.numel() == 0:
            return []
        storage = tensor.untyped_storage()
        block = storage.data_ptr()
        if tensor.device.type != KIND and block not in self._pinned:
            return []
        steps = zip(tensor.size(), tensor.stride(), strict=True)
        extent = sum((int(n) - 1) * int(step) for n, step in steps) + 1
        start = block + int(tensor.storage_offset()) * tensor.element_size()
        return [(block, start, start + extent * tensor.element_size())]

    def launch(
        self,
        call: Callable[..., Any],
        tensors: Sequence[Tensor],
        writes: Sequence[Tensor],
        what: str,
    ) -> None:
        """Queues a call on the current stream; `tensors` are what it reads, `writes` what it changes."""
        device = next(t.device for t in [*writes, *tensors] if t.device.type == KIND)
        stream = self.scheduler.current(device.index or 0)
        read = [span for tensor in tensors for span in self.spans(tensor)]
        written = [span for tensor in writes for span in self.spans(tensor)]

        def task() -> None:
            with torch.no_grad():
                call()

        self.scheduler.ask(stream, task, read, written, f"{what} at {place()}")

    def wait_for_stream(self, tensors: Sequence[Tensor]) -> None:
        """Has the host wait for all that was asked of the current stream, as whatever returns a value must."""
        device = next(t.device for t in tensors if t.device.type == KIND)
        scheduler = self.scheduler
        scheduler.wait_at(place())
        scheduler.wait(scheduler.record(scheduler.current(device.index or 0)))

    def on_host(self, tensor: Tensor) -> Tensor:
        """Returns the same memory as a CPU tensor."""
        if tensor.device.type != KIND:
            return tensor.detach()
        storage = tensor.untyped_storage()
        alias = torch._C._construct_storage_from_data_pointer(
            storage.data_ptr(), torch.device("cpu"), storage.nbytes()
        )
        empty = torch.empty(0, dtype=tensor.dtype)
        return empty.set_(alias, tensor.storage_offset(), tensor.size(), tensor.stride())

    def empty(self, size: Sequence[int], stride: Sequence[int], dtype: torch.dtype, index: int) -> Tensor:
        """Allocates device memory, filled with what nobody should read."""
        extent = sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1 if all(size) else 0
        num_bytes = extent * dtype.itemsize
        block = torch.full((max(num_bytes, 1),), 0xA5, dtype=torch.uint8)
        with self.scheduler.lock:
            rank = threading.get_ident()
            self._given[rank] = self._given.get(rank, 0) + num_bytes
        storage = torch._C._construct_storage_from_data_pointer(
            block.data_ptr(), torch.device(KIND, index), num_bytes
        )
        tensor: Tensor = torch._C._acc.create_empty_tensor((0,), dtype)
        _aten.set_.source_Storage_storage_offset.redispatch(
            _CPU, tensor, storage, 0, list(size), list(stride)
        )
        with self.scheduler.lock:
            self._blocks[block.data_ptr()] = block, weakref.ref(tensor)
        return tensor

    def _dispatch(self, op: Any, *args: Any, **kwargs: Any) -> Any:
        name: str = op._schema.name.removeprefix("aten::")
        if name in ("empty", "empty_strided"):
            return self._allocate(name, args, kwargs)
        if name in _VIEWS:
            return op.redispatch(_CPU, *args, **kwargs)
        if name == "_copy_from":
            return self._copy(args[0], args[1], bool((args[2:] or (kwargs.get("non_blocking", False),))[0]))
        if name == "_copy_from_and_resize":
            return self._copy(args[0], args[1], False)
        args = _with_tensors(op, args)
        flat, spec = tree_flatten((args, kwargs))
        tensors = [x for x in flat if isinstance(x, Tensor)]
        if name in _SYNCHRONOUS:
            return self._run_now(op, name, flat, spec, tensors)
        returned = op._schema.returns
        changed = self._changed(op, args, kwargs)
        if changed or not returned:
            self._launch_op(op, flat, spec, tensors, changed, name)
            if not returned:
                return None
            return changed[0] if len(returned) == 1 else tuple(changed)
        return self._functional(op, name, flat, spec, tensors)

    def _allocate(self, name: str, args: Any, kwargs: Any) -> Tensor:
        size = list(args[0])
        like = torch.empty_strided(size, args[1], device="meta") if name == "empty_strided" else None
        if like is None:
            like = torch.empty(size, device="meta", memory_format=kwargs.get("memory_format"))
        device = kwargs.get("device")
        dtype = kwargs.get("dtype") or torch.get_default_dtype()
        return self.empty(size, like.stride(), dtype, device.index or 0 if device is not None else 0)

    def _copy(self, source: Tensor, target: Tensor, non_blocking: bool) -> Tensor:
        """Copies within the device, or to or from host memory; only pinned memory need not be waited for."""
        host = [t for t in (source, target) if t.device.type != KIND]
        into, out_of = self.on_host(target), self.on_host(source)
        if host and host[0] is source and not self.spans(source):
            out_of = out_of.clone()  # ordinary memory is read before the call returns
        self.launch(lambda: into.copy_(out_of), [source], [target], "copy")
        if host and not (non_blocking and self.spans(host[0])) and (host[0] is target or self.spans(source)):
            self.wait_for_stream([source, target])
        return target

    def _run_now(self, op: Any, name: str, flat: list[Any], spec: Any, tensors: list[Tensor]) -> Any:
        self.wait_for_stream(tensors)
        self.scheduler.touch_on_host(
            [span for t in tensors for span in self.spans(t)], [], f"{name} at {place()}"
        )
        args, kwargs = tree_unflatten([self._lower(x) for x in flat], spec)
        found, found_spec = tree_flatten(op(*args, **kwargs))
        index = next(t.device.index for t in tensors if t.device.type == KIND)
        return tree_unflatten(
            [self._lift(x, index) if isinstance(x, Tensor) else x for x in found], found_spec
        )

    def _lift(self, value: Tensor, index: int) -> Tensor:
        tensor = self.empty(value.size(), value.stride(), value.dtype, index)
        self.on_host(tensor).copy_(value)
        return tensor

    def _changed(self, op: Any, args: Any, kwargs: Any) -> list[Tensor]:
        """Returns the arguments that the operation's schema says it writes."""
        changed: list[Tensor] = []
        for position, argument in enumerate(op._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            changed += [x for x in tree_flatten(value)[0] if isinstance(x, Tensor)]
        return changed

    def _launch_op(
        self, op: Any, flat: list[Any], spec: Any, tensors: list[Tensor], changed: list[Tensor], name: str
    ) -> None:
        if any(argument.is_out for argument in op._schema.arguments) and not all(t.numel() for t in changed):
            self._make_room(op, flat, spec, changed)
        args, kwargs = tree_unflatten([self._lower(x) for x in flat], spec)
        self.launch(lambda: op(*args, **kwargs), tensors, changed, name)

    def _make_room(self, op: Any, flat: list[Any], spec: Any, changed: list[Tensor]) -> None:
        """Gives results memory that were handed in empty, for the operation to size them."""
        args, kwargs = tree_unflatten(_shapes(flat), spec)
        found = [x for x in tree_flatten(op(*args, **kwargs))[0] if isinstance(x, Tensor)]
        for tensor, shape in zip(changed, found, strict=True):
            if tensor.size() != shape.size():
                room = self.empty(shape.size(), shape.stride(), tensor.dtype, tensor.device.index or 0)
                place = room.untyped_storage(), 0, list(shape.size()), list(shape.stride())
                _aten.set_.source_Storage_storage_offset.redispatch(_CPU, tensor, *place)

    def _functional(self, op: Any, name: str, flat: list[Any], spec: Any, tensors: list[Tensor]) -> Any:
        """Allocates results by what the operation says of shapes, and fills them later."""
        args, kwargs = tree_unflatten(_shapes(flat), spec)
        found, found_spec = tree_flatten(op(*args, **kwargs))
        index = next((t.device.index for t in tensors if t.device.type == KIND), 0)
        results = [
            self.empty(x.size(), x.stride(), x.dtype, index or 0) if isinstance(x, Tensor) else x
            for x in found
        ]
        made = [x for x in results if isinstance(x, Tensor)]
        lowered_args, lowered_kwargs = tree_unflatten([self._lower(x) for x in flat], spec)
        targets = [self.on_host(x) for x in made]

        def call() -> None:
            values = [
                x for x in tree_flatten(op(*lowered_args, **lowered_kwargs))[0] if isinstance(x, Tensor)
            ]
            for target, value in zip(targets, values, strict=True):
                target.copy_(value)

        if made:
            self.launch(call, tensors, made, name)
        return tree_unflatten(results, found_spec)

    def _lower(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            # Numbers that the host holds are read when an operation is asked for, as on CUDA.
            is_number = value.device.type != KIND and value.dim() == 0
            return value.detach().clone() if is_number else self.on_host(value)
        return torch.device("cpu") if isinstance(value, torch.device) else value


def _with_tensors(op: Any, args: Sequence[Any]) -> tuple[Any, ...]:
    """Returns arguments in which numbers that stand for tensors are tensors again: torch hands them on as numbers."""
    kinds = [str(argument.type) for argument in op._schema.arguments]
    return tuple(
        torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
        if isinstance(value, int | float) and kind == "Tensor"
        else value
        for value, kind in zip(args, kinds, strict=False)
    )


def _shapes(flat: list[Any]) -> list[Any]:
    """Returns arguments without values: tensors and devices become meta."""
    return [
        torch.empty_strided(x.size(), x.stride(), dtype=x.dtype, device="meta")
        if isinstance(x, Tensor)
        else torch.device("meta")
        if isinstance(x, torch.device)
        else x
        for x in flat
    ]


def place() -> str:
    """Returns the innermost line of ours, outside this package, that is being run."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if "/tightwire/" in name and "/tightwire/devices/" not in name:
            return f"{name.rpartition('/tightwire/')[2]}:{frame.f_lineno} {frame.f_code.co_qualname}"
        frame = frame.f_back
    return "the training loop"


def current_stream(backend: Backend, device: torch.device) -> Stream:
    """Returns the stream that this thread asks a device for."""
    return backend.scheduler.current(device.index or 0)


def _name_all_operators() -> None:
    """Makes torch's object for every operator now, in one thread.

    The fallback is given that object by an address that torch keeps and does not own. Where two threads meet an
    operator for the first time at once, each makes one, the second replaces the first, and the address is of freed
    memory.
    """
    for full in torch._C._dispatch_get_all_op_names():
        name, _, overload = full.removeprefix("aten::").partition(".")
        if full.startswith("aten::"):
            getattr(getattr(torch.ops.aten, name), overload or "default")
