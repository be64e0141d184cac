"""Events between two memories that number items in their own ways."""

from hypothesis import given
from hypothesis import strategies as st

from recserve.engine.state.observed import ObservedEvents, pack_one
from recserve.engine.state.packed import Packed, PackedReader

USERS = [bytes([number]) * 16 for number in range(3)]
ITEMS = ["a", "b", "ü", "d", "e"]
BATCHES = st.lists(
    st.lists(st.tuples(st.sampled_from(USERS), st.sampled_from(ITEMS), st.integers(0, 1 << 37)))
)


def pack(sender: ObservedEvents, n_told: int, batch: list[tuple[bytes, str, int]]) -> Packed:
    events = [pack_one(sender.code(item_id), timestamp, 0.5) for _, item_id, timestamp in batch]
    return Packed(sender.item_ids(n_told), b"".join(key for key, _, _ in batch), b"".join(events))


@given(st.lists(st.sampled_from(ITEMS)), BATCHES, st.integers(0, 5))
def test_events_are_those_that_were_sent(
    known: list[str], batches: list[list[tuple[bytes, str, int]]], room: int
) -> None:
    sender = ObservedEvents(max_users=0, max_items=0)
    codes: dict[str, int] = {}

    def code(item_id: str) -> int:
        return codes.setdefault(item_id, len(codes) if len(codes) < room else -1)

    for item_id in known:
        code(item_id)
    reader = PackedReader(code)
    n_told = 0
    for batch in batches:
        packed = pack(sender, n_told, batch)
        n_told += len(packed.new_ids)
        opened = list(reader.open(packed))
        assert opened == [
            (key, pack_one(codes[item_id], timestamp, 0.5))
            for key, item_id, timestamp in batch
            if codes[item_id] >= 0
        ]
