"""Law 3, layout: every element of every tensor is in exactly one slot, and comes back as it went in."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tightwire.buckets import FLOATS, Bucket, plan_layout
from tightwire.errors import TensorError


def contiguous(shape: list[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype)


def transposed(shape: list[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape[::-1], dtype=dtype).permute(list(reversed(range(len(shape)))))


def every_second(shape: list[int], dtype: torch.dtype) -> Tensor:
    return torch.empty([2 * n for n in shape], dtype=dtype)[tuple(slice(None, None, 2) for _ in shape)]


def channels_last(shape: list[int], dtype: torch.dtype) -> Tensor:
    return torch.empty([*shape, 2, 3, 2, 2][:4], dtype=dtype).to(memory_format=torch.channels_last)


LAYOUTS = (contiguous, transposed, every_second, channels_last)
TENSORS = st.builds(
    lambda make, shape, dtype: make(shape, dtype),
    st.sampled_from(LAYOUTS),
    st.lists(st.integers(0, 3), max_size=4),
    st.sampled_from(FLOATS),
)


@st.composite
def models(draw: st.DrawFn) -> tuple[dict[str, Tensor], list[list[int]]]:
    """Named tensors and a legal partition of them, in any order."""
    tensors = {f"t{i}": t for i, t in enumerate(draw(st.lists(TENSORS, max_size=8)))}
    partition: dict[object, list[int]] = {}
    for position in draw(st.permutations(range(len(tensors)))):
        cut = draw(st.integers(0, 2))
        partition.setdefault((tensors[f"t{position}"].dtype, cut), []).append(position)
    return tensors, list(partition.values())


def fill(tensors: dict[str, Tensor]) -> None:
    for seed, tensor in enumerate(tensors.values()):
        tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed)))


@settings(max_examples=50)
@given(models())
def test_every_element_has_one_slot_and_every_slot_element_one_owner(
    model: tuple[dict[str, Tensor], list[list[int]]],
) -> None:
    tensors, partition = model
    layout = plan_layout(tensors, partition)
    seen: list[str] = []
    for bucket_layout in layout:
        bucket = Bucket(bucket_layout)
        counts = torch.zeros(bucket_layout.numel, dtype=torch.int64)
        for slot in bucket_layout.slots:
            counts.as_strided(slot.shape, slot.stride, slot.offset).add_(1)
            assert bucket.views[slot.name].shape == tensors[slot.name].shape
            assert slot.numel == tensors[slot.name].numel()
            seen.append(slot.name)
        assert bool((counts == 1).all())
        assert bucket_layout.num_bytes == bucket.flat.nbytes
    assert sorted(seen) == sorted(tensors)


@settings(max_examples=50)
@given(models())
def test_unpack_of_pack_is_the_identity(model: tuple[dict[str, Tensor], list[list[int]]]) -> None:
    tensors, partition = model
    fill(tensors)
    given_values = {name: tensor.clone() for name, tensor in tensors.items()}
    buckets = [Bucket(bucket_layout) for bucket_layout in plan_layout(tensors, partition)]
    for bucket in buckets:
        bucket.pack({name: tensors[name] for name in bucket.views})
    for tensor in tensors.values():
        tensor.fill_(float("nan"))
    for bucket in buckets:
        assert bucket.flat.isfinite().all()
        bucket.unpack({name: tensors[name] for name in bucket.views})
    for name, tensor in tensors.items():
        assert torch.equal(tensor, given_values[name])


@pytest.mark.parametrize("make", LAYOUTS)
def test_views_keep_the_memory_order_of_dense_tensors(make: object) -> None:
    assert callable(make)
    tensor = make([2, 3, 4, 5], torch.float32)
    bucket = Bucket(plan_layout({"a": tensor}, [[0]])[0])
    assert bucket.views["a"].stride() == torch.empty_like(tensor).stride()


def test_views_share_the_memory() -> None:
    layout = plan_layout({"a": torch.zeros(()), "b": torch.zeros(2, 2)}, [[1, 0]])[0]
    bucket = Bucket(layout, torch.arange(5.0))
    assert bucket.views["b"].tolist() == [[0, 1], [2, 3]]
    bucket.views["a"].fill_(9)
    assert bucket.flat.tolist() == [0, 1, 2, 3, 9]


def test_no_tensors_need_no_buckets() -> None:
    assert plan_layout({}, []) == ()


@pytest.mark.parametrize(
    ("tensors", "partition", "said"),
    [
        ([torch.zeros(2), torch.zeros(2)], [[0]], "exactly once"),
        ([torch.zeros(2)], [[0], [0]], "exactly once"),
        ([torch.zeros(2)], [[0, 1]], "exactly once"),
        ([torch.zeros(2), torch.zeros(2).double()], [[0, 1]], "one dtype on one device"),
        ([torch.zeros(2, dtype=torch.int64)], [[0]], "torch.int64; only torch.float32"),
        ([torch.zeros(2, dtype=torch.complex64)], [[0]], "torch.complex64; only torch.float32"),
    ],
)
def test_refuses_what_cannot_be_laid_out(
    tensors: list[Tensor], partition: list[list[int]], said: str
) -> None:
    with pytest.raises(TensorError, match=said):
        plan_layout({f"t{i}": tensor for i, tensor in enumerate(tensors)}, partition)
