"""The bytes of slates: equal to the twin's, and what protobuf reads is what went in."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recserve import kernels
from recserve.kernels import reference
from recserve.proto import recommender_pb2 as pb

IDS = ["a", "é", "日本", "x" * 127, "y" * 128, "z" * 256, ""]


def id_arrays(ids: list[str]) -> tuple[np.ndarray, np.ndarray]:
    data = [text.encode() for text in ids]
    offsets = np.concatenate([[0], np.cumsum([len(d) for d in data])]).astype(np.int64)
    return offsets, np.frombuffer(b"".join(data), np.uint8)


@settings(deadline=None)  # The first example compiles the kernel.
@given(
    st.lists(
        st.lists(st.tuples(st.integers(-1, len(IDS) - 1), st.floats(width=32, allow_nan=False)), max_size=12),
        min_size=1,
        max_size=5,
    )
)
def test_protobuf_reads_what_was_written(rows: list[list[tuple[int, float]]]) -> None:
    lengths = np.array([len(row) for row in rows])
    shape = (len(rows), max(1, int(lengths.max())))
    items, scores = np.full(shape, -1, np.int32), np.zeros(shape, np.float32)
    for i, row in enumerate(rows):
        for j, (item, score) in enumerate(row):
            items[i, j], scores[i, j] = item, score
    out, ends = kernels.encode_slate_items(*id_arrays(IDS), items, scores, lengths)
    twin, twin_ends = reference.encode_slate_items(*id_arrays(IDS), items, scores, lengths)
    np.testing.assert_array_equal(out, twin)
    np.testing.assert_array_equal(ends, twin_ends)
    start = 0
    for row, end in zip(rows, ends.tolist(), strict=True):
        slate = pb.Slate.FromString(out[start:end].tobytes())
        kept = [(IDS[item], score) for item, score in row if item >= 0]
        assert [(item.item_id, item.score) for item in slate.items] == kept
        assert [item.rank for item in slate.items] == list(range(1, len(kept) + 1))
        start = end


@pytest.mark.parametrize("k", [127, 128, 1000])
def test_ranks_of_two_bytes(k: int) -> None:
    items = np.arange(k, dtype=np.int32)[None] % len(IDS)
    scores = np.zeros(items.shape, np.float32)
    out, _ = kernels.encode_slate_items(*id_arrays(IDS), items, scores, np.array([k]))
    assert [item.rank for item in pb.Slate.FromString(out.tobytes()).items] == list(range(1, k + 1))
