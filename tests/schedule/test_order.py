"""The order of pieces: Jackson's rule."""

from hypothesis import given
from hypothesis import strategies as st

from tightwire.schedule import BucketFacts, Piece, Wire
from tightwire.schedule.order import Instance, by_urgency, jackson
from tightwire.schedule.priority import cut

WIRES = st.builds(Wire, latency_s=st.floats(1e-4, 0.3), bytes_per_s=st.floats(50, 5000))
BUCKETS = st.lists(
    st.builds(BucketFacts, num_bytes=st.integers(0, 900), ready_s=st.floats(0, 1), divisible=st.booleans()),
    min_size=1,
    max_size=9,
).filter(lambda buckets: any(bucket.ready_s for bucket in buckets))


def instance(buckets: list[BucketFacts], pieces: tuple[Piece, ...], wire: Wire) -> Instance:
    return Instance([buckets[p.bucket].ready_s for p in pieces], [wire.seconds(p.num_bytes) for p in pieces])


@given(BUCKETS, WIRES, st.integers(64, 400))
def test_jackson_takes_the_most_urgent_of_what_is_there(
    buckets: list[BucketFacts], wire: Wire, slice_bytes: int
) -> None:
    """Replays the order on a wire of the assumed speed: no more urgent piece was ready when one was taken."""
    pieces = cut(tuple(buckets), slice_bytes)
    order, now_s = jackson(pieces, buckets, instance(buckets, pieces, wire)), 0.0
    for position, piece in enumerate(pieces[i] for i in order):
        left = [pieces[i] for i in order[position:]]
        now_s = max(now_s, min(buckets[p.bucket].ready_s for p in left))
        assert buckets[piece.bucket].ready_s <= now_s
        urgent = max(
            (buckets[p.bucket].ready_s, p.bucket) for p in left if buckets[p.bucket].ready_s <= now_s
        )
        assert (buckets[piece.bucket].ready_s, piece.bucket) == urgent
        now_s += wire.seconds(piece.num_bytes)


@given(BUCKETS, st.none() | WIRES, st.integers(64, 400), st.integers(1, 4))
def test_every_piece_has_one_place(
    buckets: list[BucketFacts], wire: Wire | None, slice_bytes: int, lanes: int
) -> None:
    pieces = cut(tuple(buckets), slice_bytes)
    agenda = by_urgency(pieces, buckets, wire, lanes=lanes, credit_bytes=500)
    assert sorted(agenda.pieces, key=repr) == sorted(pieces, key=repr)
    assert (agenda.lanes, agenda.credit_bytes) == (lanes, 500)


def test_the_layer_that_the_forward_needs_first_goes_first_where_both_wait() -> None:
    buckets = [BucketFacts(num_bytes=100, ready_s=number / 10) for number in range(3)]
    wire = Wire(latency_s=0.0, bytes_per_s=100.0)  # a second each
    assert [piece.bucket for piece in by_urgency(cut(tuple(buckets), 400), buckets, wire).pieces] == [0, 2, 1]
