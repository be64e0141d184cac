"""A search that is shared out among threads gives the answer of one thread, and fails as one thread does."""

import ctypes
import os
import subprocess
import sys
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numba import config

from recserve.errors import InvalidRequest
from recserve.kernels import ItemIndex, helpers, parts
from recserve.kernels.helpers import MIN_PART, part_ends
from recserve.kernels.isa import choose

N_ITEMS, DIM = 900, 20


@pytest.fixture(scope="module")
def index() -> ItemIndex:
    return ItemIndex.build(np.random.default_rng(0).standard_normal((N_ITEMS, DIM), dtype=np.float32))


def queries_of(n: int, seed: int = 1) -> Any:
    return np.random.default_rng(seed).standard_normal((n, DIM), dtype=np.float32)


def same_together(index: ItemIndex, threads: int = 2) -> bool:
    queries = queries_of(64)
    together, alone = index.search(queries, 6, threads=threads), index.search(queries, 6)
    return all(np.array_equal(one, other) for one, other in zip(together, alone, strict=True))


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


def test_the_portable_form_is_shared_as_well() -> None:
    vectors = np.random.default_rng(0).standard_normal((100, DIM), dtype=np.float32)
    assert same_together(ItemIndex.build(vectors, isa="portable"))


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


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The idle helpers of this test alone."""
    of_forms: Any = defaultdict(list)
    monkeypatch.setattr(helpers, "_idle", of_forms)
    return of_forms[choose(None)]


def replace_forms(patch: pytest.MonkeyPatch, post: Any = None, serve: Any = None) -> None:
    """Gives searches another ``post`` or ``serve``, made from the true one."""

    def forms(isa: Any) -> Any:
        posting, serving = parts.forms(isa)
        return post(posting) if post else posting, serve(serving) if serve else serving

    patch.setattr(helpers, "forms", forms)


def wait_for(condition: Any) -> None:
    for _ in range(60_000):
        if condition():
            return
        time.sleep(0.001)
    pytest.fail("a minute was not enough")


def test_where_no_thread_can_be_started_the_search_goes_on_and_says_so(
    index: ItemIndex, idle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(thread: Any) -> None:
        raise RuntimeError("can't start new thread")

    assert same_together(index)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.warns(RuntimeWarning, match="with 2 of 4 threads"):
            assert same_together(index, threads=4)
    assert len(idle) == 1
    assert same_together(index, threads=4)
    assert len(idle) == 3


@pytest.mark.parametrize("posted", [False, True])
def test_an_interrupt_leaves_no_helper_at_work_and_loses_none(
    index: ItemIndex, idle: Any, monkeypatch: pytest.MonkeyPatch, posted: bool
) -> None:
    def interrupted(post: Any) -> Any:
        def interrupt(*arguments: Any) -> None:
            if posted:
                post(*arguments)
            raise KeyboardInterrupt

        return interrupt

    with monkeypatch.context() as patch:
        replace_forms(patch, post=interrupted)
        with pytest.raises(KeyboardInterrupt):
            index.search(queries_of(64), 6, threads=3)
    assert [helper._box[parts.STATE] for helper in idle] == [parts.FREE] * 2
    assert same_together(index, threads=3)
    assert len(idle) == 2


def test_what_a_helper_has_no_memory_for_the_caller_does(
    index: ItemIndex, idle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller, failed = threading.get_ident(), threading.Event()

    def failing(serve: Any) -> Any:
        def begin_and_fail(box: Any, turns: int) -> None:
            if threading.get_ident() == caller or failed.is_set():
                failed.wait(60)
                serve(box, turns)
                return
            wait_for(lambda: box[parts.STATE] == parts.POSTED)
            box[parts.STATE] = parts.TAKEN
            ctypes.c_int64.from_address(int(box[parts.JOB])).value += 1  # a part is begun
            failed.set()
            raise MemoryError

        return begin_and_fail

    replace_forms(monkeypatch, serve=failing)
    assert same_together(index)
    assert failed.is_set()
    assert same_together(index)
    assert len(idle) == 1


def test_what_the_caller_has_no_memory_for_it_raises(
    index: ItemIndex, idle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller = threading.get_ident()

    def failing(serve: Any) -> Any:
        def fail(box: Any, turns: int) -> None:
            if threading.get_ident() != caller:
                return serve(box, turns)
            box[parts.STATE] = parts.TAKEN
            raise MemoryError

        return fail

    with monkeypatch.context() as patch:
        replace_forms(patch, serve=failing)
        with pytest.raises(MemoryError):
            index.search(queries_of(64), 6, threads=2)
    assert same_together(index)
    assert len(idle) == 1


def test_a_helper_that_does_not_begin_is_not_waited_for(
    index: ItemIndex, idle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller = threading.get_ident()

    def lazy(serve: Any) -> Any:
        return lambda box, turns: serve(box, turns) if threading.get_ident() == caller else None

    replace_forms(monkeypatch, serve=lazy)
    assert same_together(index, threads=3)


def test_a_helper_that_sleeps_is_woken(index: ItemIndex, idle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(helpers, "TURNS", 0)
    assert same_together(index)
    helper = idle[0]
    wait_for(lambda: helper._sleeps)
    # Woken before its part is posted, it must not fall asleep again where this thread loses its core between.
    monkeypatch.setattr(helpers, "TURNS", 8_000_000)

    def patient(serve: Any) -> Any:
        def serve_after_the_helper(box: Any, turns: int) -> None:
            wait_for(lambda: helper._box[parts.STATE] != parts.POSTED)
            serve(box, turns)

        return serve_after_the_helper

    replace_forms(monkeypatch, serve=patient)
    assert same_together(index)


def test_callers_side_by_side_get_helpers_of_their_own(index: ItemIndex) -> None:
    asked = [queries_of(64, seed) for seed in range(2 if config.DISABLE_JIT else 8)]
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
