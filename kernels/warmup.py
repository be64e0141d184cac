"""Compiles or loads everything before the first request does."""

import numpy as np

from recserve.kernels.checks import read_only
from recserve.kernels.diversity import dpp, mmr
from recserve.kernels.encoding import encode_slate_items
from recserve.kernels.foldin import fold_in
from recserve.kernels.index import ItemIndex


def warmup() -> None:
    """Runs every kernel once in each form that a request may need: some 15 s the first time on a machine.

    After that the compiled kernels come from Numba's cache in a fraction of a second.
    """
    vectors = np.eye(3, dtype=np.float32)
    lists = (np.array([0, 1, 1, 1]), np.array([2], np.int32))
    index = ItemIndex.build(vectors)
    index.upsert(np.array([0], np.int32), vectors[:1])
    index.search(vectors[:1], 2)
    index.search(np.tile(vectors, (8, 1)), 2)
    index.search(vectors, 2, exclude=lists, allow=np.ones(3, np.bool_), bias=np.zeros(3, np.float32))
    scores, candidates = index.search(vectors, 2)
    mmr(scores, candidates, vectors, 2, diversity=0.5)
    dpp(scores, candidates, vectors, 2, diversity=0.5)
    fold_in(vectors, lists, np.ones(1, np.float32), reg=1.0)
    read_only_offsets, read_only_bytes = read_only(np.arange(4)), read_only(np.zeros(3, np.uint8))
    encode_slate_items(read_only_offsets, read_only_bytes, candidates, scores, np.array([2, 2, 2]))
