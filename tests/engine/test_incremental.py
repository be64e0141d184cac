"""What is kept of users' histories changes how long an answer takes, and nothing else."""

import gc
import shutil
from collections.abc import Hashable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from recserve.engine import Engine, EngineConfig, Request
from recserve.engine.bundle.histories import History
from recserve.engine.history_cache import ROOM, HistoryCache
from recserve.engine.incremental import IncrementalEncoder, window_start
from recserve.engine.session import QueryEncoder
from recserve.engine.state.config import StateConfig
from recserve.engine.state.events import Event
from recserve.engine.state.state import State, open_state
from recserve.errors import BundleInvalid, ConfigError
from recserve.exporters.assemble import export_run
from recserve.training.commands import run_config
from recserve.training.data import load_dataset
from recserve.training.loop import Trainer
from recserve.training.run import create_run
from tests.conftest import SHOP
from tests.engine.bundle.conftest import BundleCopy
from tests.once import made_once

FORMS = {
    "sasrec": {"n_blocks": 2, "n_heads": 2},
    "hstu": {"n_blocks": 2, "n_heads": 1},
}
LONGEST = 20
TOLERANCE = 1e-5
NOW = 1_760_000_000


@pytest.fixture(scope="session", params=FORMS)
def folder(request: pytest.FixtureRequest, shared_folder: Path) -> Path:
    """A bundle with an incremental encoder, trained for a moment with large steps: biases are no zeros."""
    name = request.param
    folder = shared_folder / f"incremental-{name}"
    with made_once(folder) as is_missing:
        if is_missing:
            settings = {"embedding_size": 16, "max_history": LONGEST, "incremental": True, **FORMS[name]}
            settings |= {"epochs": 1, "learning_rate": 0.05, "validate_every": 1, "seed": 3}
            config = run_config(name, "leave-one-out", settings)
            run = create_run(shared_folder / f"incremental-run-{name}", config, load_dataset(SHOP))
            Trainer(run.new_model(), run.split(), run.folder, config.loop).fit()
            export_run(run, folder)
    return folder


@pytest.fixture(scope="session")
def engine_pair(folder: Path) -> tuple[Engine, Engine]:
    return Engine.load(folder, EngineConfig(history_cache_mb=4)), Engine.load(folder)


def encoder_of(engine: Engine) -> QueryEncoder:
    source = engine.loaded.sources["fp32"]
    assert isinstance(source, QueryEncoder)
    return source


def cache_of(engine: Engine) -> HistoryCache:
    incremental = encoder_of(engine)._incremental
    assert isinstance(incremental, IncrementalEncoder)
    return incremental.cache


GAPS = st.integers(0, 10_000_000)
STEPS = st.lists(st.tuples(st.integers(0, 99), GAPS), min_size=1, max_size=8)


@given(st.lists(STEPS, min_size=1, max_size=12), st.integers(0, 30))
def test_a_history_that_grows_is_encoded_as_at_once(
    engine_pair: tuple[Engine, Engine], steps: list[list[tuple[int, int]]], n_first: int
) -> None:
    keeping, plain = (encoder_of(engine) for engine in engine_pair)
    items = [(7 * i) % 100 for i in range(n_first)]
    times = [NOW - 400_000_000 + 3_000_000 * i for i in range(n_first)]
    for step in steps:
        for item, gap in step:
            items.append(item)
            times.append((times[-1] if times else NOW - 400_000_000) + gap)
        history = History(np.array(items, np.int32), np.array(times, np.int64), key="grows")
        found = keeping.encode([history], NOW)
        start = window_start(history.items, LONGEST)
        same = History(history.items[start:], history.timestamps[start:])
        np.testing.assert_allclose(found, plain.encode([same], NOW), atol=TOLERANCE)
    keeping.forget(None)


def test_a_history_that_goes_on_otherwise_is_encoded_as_at_once(engine_pair: tuple[Engine, Engine]) -> None:
    keeping, plain = (encoder_of(engine) for engine in engine_pair)
    items = np.arange(LONGEST - 1, dtype=np.int32)
    # What was observed may be forgotten, and then another event follows those of the bundle.
    for gap in (60, 30_000_000, 3_600):
        times = np.append(NOW - 90_000_000 + 1_000 * items[:-1].astype(np.int64), NOW - 80_000_000 + gap)
        found = keeping.encode([History(items, times, key="goes on")], NOW)
        np.testing.assert_allclose(found, plain.encode([History(items, times)], NOW), atol=TOLERANCE)
    keeping.forget(None)


def test_other_users_batches_and_short_histories_change_nothing(engine_pair: tuple[Engine, Engine]) -> None:
    keeping, plain = (encoder_of(engine) for engine in engine_pair)
    rng = np.random.default_rng(0)
    histories = [
        History(rng.integers(0, 100, n).astype(np.int32), NOW - np.arange(n)[::-1] * 1000, key=key)
        for n, key in ((20, "a"), (3, "b"), (20, None), (20, "a"), (LONGEST, "c"))
    ]
    for _ in range(2):
        np.testing.assert_allclose(
            keeping.encode(histories, NOW), plain.encode(histories, NOW), atol=TOLERANCE
        )
    assert len(cache_of(engine_pair[0])) == 2
    keeping.forget(None)


def test_a_remembered_user_is_a_hit_and_gets_the_same_slate(folder: Path) -> None:
    with Engine.load(folder, EngineConfig(history_cache_mb=4)) as keeping, Engine.load(folder) as plain:
        ids = keeping.loaded.bundle.catalogue.vocabulary.ids(list(range(LONGEST - 3)))
        for engine in (keeping, plain):
            for item_id in ids:
                engine.observe(user_id="new", item_id=item_id, timestamp=NOW)
        for extra in keeping.loaded.bundle.catalogue.vocabulary.ids([40, 41, 42]):
            for engine in (keeping, plain):
                engine.observe(user_id="new", item_id=extra, timestamp=NOW)
            slates = [engine.recommend(Request(user_id="new", k=5)) for engine in (keeping, plain)]
            ours, theirs = ([item.item_id for item in slate.items] for slate in slates)
            assert ours == theirs
        stats = keeping.stats()
        assert (stats["history_cache_hits"], stats["history_cache_misses"]) == (2, 1)
        assert "history_cache_hits" not in plain.stats()
        assert cache_of(keeping).n_bytes > 0
        keeping.drop_kept()
        assert cache_of(keeping).n_bytes == 0


def test_an_erased_user_leaves_nothing_and_never_comes_back(folder: Path) -> None:
    with open_state(StateConfig(url="memory://")) as state:
        state.load()
        with Engine.load(folder, EngineConfig(history_cache_mb=4), observed=state.observed) as engine:
            fill(state, engine, "gone")
            fill(state, engine, "stays")
            engine.recommend(Request(user_id="gone", k=3))
            engine.recommend(Request(user_id="stays", k=3))
            cache, key = cache_of(engine), state.observed.key_of("gone")
            assert len(cache) == 2
            state.erase("gone").result()
            assert len(cache) == 1
            # An answer that was being computed meanwhile must not bring it back.
            keep(cache, key, 5)
            assert n_found(cache, key) == 0
            assert engine.recommend(Request(user_id="gone", k=3)).source != "model"


def test_a_freed_engine_is_not_held_by_the_state(bundle_folder: Path) -> None:
    with open_state(StateConfig(url="memory://")) as state:
        engine = Engine.load(bundle_folder, observed=state.observed)
        assert len(state.observed._followers) == 1
        del engine
        gc.collect()
        assert not len(state.observed._followers)


def fill(state: State, engine: Engine, user_id: str) -> None:
    ids = engine.loaded.bundle.catalogue.vocabulary.ids(list(range(LONGEST)))
    state.record(
        [
            Event(user_id=user_id, item_id=item_id, event_id=f"{user_id} {item_id}", timestamp=NOW)
            for item_id in ids
        ]
    )


NO_TIMES = np.zeros(10, np.int64)


def keep(cache: HistoryCache, key: Hashable, n: int, first: int = 0) -> None:
    """Keeps ``n`` items from ``first`` on, of which the number of each was computed."""
    items = np.arange(first, first + n, dtype=np.int32)
    past = items.astype(np.float32)[None, :, None, None].repeat(2, axis=0)
    cache.keep(key, None, 0, items, NO_TIMES[: n + 1], past)


def n_found(cache: HistoryCache, key: Hashable, first: int = 0) -> int:
    return cache.find(key, np.arange(first, first + 9, dtype=np.int32), NO_TIMES[:9])[1]


def entry_bytes(n: int) -> int:
    cache = HistoryCache(1 << 20, 9)
    keep(cache, "u", n)
    return cache.n_bytes


# There is room for a whole history of nine.
ENTRY_BYTES = entry_bytes(4)
WORDS = st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 3), st.booleans()), max_size=40)


@given(WORDS)
def test_the_bytes_are_bounded_and_the_users_encoded_last_are_those_kept(
    words: list[tuple[str, int, bool]],
) -> None:
    cache, model = HistoryCache(3 * ENTRY_BYTES, 9), dict[str, int]()
    for key, first, is_kept in words:
        if is_kept:
            model.pop(key, None)
            model[key] = first
            keep(cache, key, 4, first)
            if len(model) > 3:
                del model[next(iter(model))]
        else:
            assert (n_found(cache, key, first) > 0) == (model.get(key) == first)
            if key in model:
                model[key] = model.pop(key)
        assert cache.n_bytes == len(model) * ENTRY_BYTES == len(cache) * ENTRY_BYTES


def test_who_does_not_fit_drives_nobody_out() -> None:
    cache = HistoryCache(2 * ENTRY_BYTES, 200)
    cache.keep("b", None, 0, np.zeros(150, np.int32), None, np.zeros((2, 150, 1, 1), np.float32))
    assert (len(cache), cache.n_bytes) == (0, 0)
    cache = HistoryCache(2 * ENTRY_BYTES, 9)
    keep(cache, "a", 4)
    keep(cache, "b", 4)
    cache.keep("b", None, 0, np.zeros(4, np.int32), None, np.zeros((99, 4, 1, 1), np.float32))
    assert (len(cache), cache.n_bytes) == (1, ENTRY_BYTES)
    assert n_found(cache, "a")


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=9), st.lists(st.integers(0, 3), min_size=1, max_size=9)
)
def test_only_the_beginning_that_both_have_is_used(kept: list[int], asked: list[int]) -> None:
    cache = HistoryCache(1 << 20, 9)
    past, items = np.array(kept, np.float32)[None, :, None, None], np.array(asked, np.int32)
    cache.keep("u", None, 0, np.array(kept, np.int32), NO_TIMES[: len(kept) + 1], past)
    cache.keep("no times", None, 0, np.array(kept, np.int32), None, past)
    n = 0
    while n < min(len(kept), len(asked) - 1) and kept[n] == asked[n]:
        n += 1
    times = NO_TIMES[: len(asked)].copy()
    found, n_known = cache.find("u", items, times)
    assert (n_known, found is None) == (n, n == 0)
    assert found is None or found.past[0, :n, 0, 0].tolist() == kept[:n]
    # Another time of the same item is another history, and so is another time of the item after it.
    times[n:] = 1
    assert cache.find("u", items, times)[1] == max(n - 1, 0)
    assert cache.find("u", items, np.ones(len(asked), np.int64)) == (None, 0)
    # But where times are not read.
    assert cache.find("no times", items, None)[1] == n


@given(st.lists(st.integers(1, 3), min_size=1, max_size=60), st.integers(0, 40))
def test_an_entry_grows_behind_what_was_found(steps: list[int], diverges: int) -> None:
    cache, items = HistoryCache(1 << 20, 200), np.arange(200, dtype=np.int32)
    computed = items.astype(np.float32)[None, :, None, None]
    readers = []
    n_known = 0
    for step in range(len(steps)):
        if step == diverges:
            items = items + 1000
            computed = computed + 1000
        found, n_known = cache.find("u", items, None)
        assert n_known == (0 if step in (0, diverges) else sum(steps[:step]))
        if found is not None:
            view = found.past[:, :n_known]
            readers.append((view, view.copy()))
        end = sum(steps[: step + 1])
        cache.keep("u", found, n_known, items[:end], None, computed[:, n_known:end])
    for view, before in readers:
        assert np.array_equal(view, before)
    found, n = cache.find("u", items, None)
    assert found is not None
    assert np.array_equal(found.past[:, :n], computed[:, :n])
    assert len(found.items) <= n + ROOM


def test_who_encodes_a_history_that_another_kept_meanwhile_keeps_the_same() -> None:
    cache, items = HistoryCache(1 << 20, 20), np.arange(20, dtype=np.int32)
    computed = items.astype(np.float32)[None, :, None, None]
    cache.keep("u", None, 0, items[:5], None, computed[:, :5])
    found, n_known = cache.find("u", items[:8], None)
    for end, longest in ((7, 7), (8, 8), (7, 8)):
        cache.keep("u", found, n_known, items[:end], None, computed[:, n_known:end])
        now, n = cache.find("u", items, None)
        assert now is not None
        assert n == longest
        assert np.array_equal(now.past[:, :n], computed[:, :n])


@pytest.mark.parametrize("timestamps", [None, np.arange(20, dtype=np.int64)])
def test_who_is_asked_about_again_is_not_copied(timestamps: NDArray[np.int64] | None) -> None:
    cache, items = HistoryCache(1 << 20, 20), np.arange(20, dtype=np.int32)
    computed = items.astype(np.float32)[None, :, None, None]
    cache.keep("u", None, 0, items[:9], timestamps, computed[:, :9])
    kept, _ = cache.find("u", items, timestamps)
    found, n_known = cache.find("u", items[:9], timestamps)
    assert n_known == 8
    cache.keep("u", found, n_known, items[:9], timestamps, computed[:, n_known:9])
    assert cache.find("u", items, timestamps) == (kept, 9)
    # Another item, or another time of the one after it, is not what is kept.
    other = np.append(items[:8], np.int32(19))
    cache.keep("u", found, n_known, other, timestamps, computed[:, 19:])
    now, n = cache.find("u", np.append(other, np.int32(3)), timestamps)
    assert now is not None
    assert n == 9
    assert now is not kept
    assert now.past[0, 8] == 19


@given(st.integers(1, 60), st.lists(st.integers(0, 1000), min_size=1, max_size=200))
def test_a_window_is_of_the_newest_and_the_same_whatever_was_forgotten(
    longest: int, given: list[int]
) -> None:
    items, n = np.array(given, np.int32), len(given)
    kept = n - window_start(items, longest)
    assert kept == n if n <= longest else longest - max(1, longest // 3) < kept <= longest
    for forgotten in range(n - longest):
        assert n - forgotten - window_start(items[forgotten:], longest) == kept


def test_a_window_mostly_stays() -> None:
    items = np.random.default_rng(0).integers(0, 1000, 2000).astype(np.int32)
    starts = {window_start(items[:n], 200) for n in range(400, 2000)}
    # Winnowing promises 2 of every w + 1: one in 33 events.
    assert 30 < len(starts) < 70


def test_a_graph_that_computes_something_else_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = BundleCopy(shutil.copytree(folder, tmp_path / "bundle"))
    name = copy.manifest()["variants"]["fp32"]["incremental_encoder"]
    model = onnx.load_model_from_string(copy.read(name))
    [*_, weight] = [one for one in model.graph.initializer if one.name.endswith("norm.weight")]
    weight.raw_data = (2 * np.frombuffer(weight.raw_data, np.float32)).tobytes()
    copy.write(name, model.SerializeToString())
    Engine.load(copy.folder).close()
    with pytest.raises(BundleInvalid, match="difference from"):
        Engine.load(copy.folder, EngineConfig(history_cache_mb=4))


def test_a_graph_without_the_inputs_that_it_needs_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = BundleCopy(shutil.copytree(folder, tmp_path / "bundle"))
    names = copy.manifest()["variants"]["fp32"]
    copy.write(names["incremental_encoder"], copy.read(names["query_encoder"]))
    with pytest.raises(BundleInvalid, match=r"inputs and outputs of .* Export the run again"):
        Engine.load(copy.folder, EngineConfig(history_cache_mb=4))


def test_a_graph_of_before_with_a_batch_is_refused() -> None:
    past = {f"past{i}": [1, 2, "past", 8] for i in range(4)}
    nodes = [
        SimpleNamespace(name=name, shape=shape) for name, shape in {"history": [1, "new"], **past}.items()
    ]
    outputs = [SimpleNamespace(name=name) for name in ("query_embedding", "new")]
    session = SimpleNamespace(get_inputs=lambda: nodes, get_outputs=lambda: outputs)
    with pytest.raises(BundleInvalid, match="Export the run again"):
        IncrementalEncoder(session, session, "a graph", ["history"], LONGEST, 0)  # type: ignore[arg-type]


def test_the_setting_is_checked() -> None:
    with pytest.raises(ConfigError, match=r"engine\.history_cache_mb is -1"):
        EngineConfig(history_cache_mb=-1)
