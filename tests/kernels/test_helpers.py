"""A search that is shared out among threads gives the answer of one thread, and fails as one thread does."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from recserve.errors import InvalidRequest
from recserve.kernels import ItemIndex, helpers
from recserve.kernels.helpers import MIN_PART, part_ends

N_ITEMS, DIM = 900, 20


@pytest.fixture(scope="module")
def index() -> ItemIndex:
    return ItemIndex.build(np.random.default_rng(0).standard_normal((N_ITEMS, DIM), dtype=np.float32))


def queries_of(n: int, seed: int = 1) -> Any:
    return np.random.default_rng(seed).standard_normal((n, DIM), dtype=np.float32)


@pytest.mark.parametrize("batch", [0, 1, 2 * MIN_PART - 1, 2 * MIN_PART, 3 * MIN_PART + 1, 101])
@pytest.mark.parametrize("threads", [2, 3])
def test_the_answer_is_that_of_one_thread(index: ItemIndex, batch: int, threads: int) -> None:
    rng, queries = np.random.default_rng(2), queries_of(batch)
    lists = np.arange(batch + 1) * 5, rng.integers(0, N_ITEMS, 5 * batch).astype(np.int32)
    for rules in (
        {},
        {"exclude": lists},
        {"allow": rng.random(N_ITEMS) < 0.5, "bias": rng.random(N_ITEMS, np.float32)},
        {"allow": rng.random((batch, N_ITEMS)) < 0.1},
    ):
        together = index.search(queries, 9, threads=threads, **rules)  # type: ignore[arg-type]
        alone = index.search(queries, 9, **rules)  # type: ignore[arg-type]
        assert all(np.array_equal(one, other) for one, other in zip(together, alone, strict=True))


@pytest.mark.parametrize("n_queries", [1, 31, 32, 33, 64, 100, 1000])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_parts_are_whole_blocks_of_like_size(n_queries: int, threads: int) -> None:
    ends = part_ends(n_queries, threads)
    sizes = np.diff([0, *ends])
    assert ends[-1] == n_queries
    assert len(ends) <= threads
    assert len(ends) == 1 or (sizes >= MIN_PART // 2).all()
    assert all(end % helpers.BLOCK == 0 for end in ends[:-1])
    assert sizes.max() - sizes.min() < 2 * helpers.BLOCK


def test_the_row_that_is_refused_is_named_wherever_it_is(index: ItemIndex) -> None:
    for row in (3, 77):
        queries = queries_of(96)
        queries[row, 0] = np.nan
        with pytest.raises(InvalidRequest, match=f"queries row {row} "):
            index.search(queries, 5, threads=3)
    with pytest.raises(InvalidRequest, match="threads is 0"):
        index.search(queries_of(96), 5, threads=0)


def test_what_a_helper_raises_the_caller_raises_and_the_helper_goes_on(index: ItemIndex) -> None:
    caller = threading.get_ident()

    def search(table: Any, queries: Any, *rest: Any) -> int:
        if threading.get_ident() != caller:
            raise MemoryError("no room")
        return -1

    scores, items = np.empty((64, 3), np.float32), np.empty((64, 3), np.int32)
    table = index._snapshot.table
    arguments = queries_of(64), 1.0, scores, items, np.zeros(3, np.int64)
    with pytest.raises(MemoryError, match="no room"):
        helpers.search_together(2, search, None, table, *arguments)
    test_the_answer_is_that_of_one_thread(index, 64, 2)


def test_callers_side_by_side_get_helpers_of_their_own(index: ItemIndex) -> None:
    asked = [queries_of(64, seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda queries: index.search(queries, 6, threads=2), asked * 4))
    for queries, (scores, items) in zip(asked * 4, found, strict=True):
        wanted = index.search(queries, 6)
        assert np.array_equal(scores, wanted[0])
        assert np.array_equal(items, wanted[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_process_starts_helpers_of_its_own() -> None:
    code = (
        "import os, numpy as np\n"
        "from recserve.kernels import ItemIndex\n"
        "index = ItemIndex.build(np.eye(8, dtype=np.float32))\n"
        "queries = np.ones((64, 8), np.float32)\n"
        "wanted = index.search(queries, 4, threads=2)\n"
        "child = os.fork()\n"
        "found = index.search(queries, 4, threads=2)\n"
        "assert np.array_equal(found[1], wanted[1])\n"
        "if child:\n"
        "    assert os.waitpid(child, 0)[1] == 0\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
