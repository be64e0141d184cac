"""What is kept of users' histories changes how long an answer takes, and nothing else."""

import gc
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recserve.engine import Engine, EngineConfig, Request
from recserve.engine.bundle.histories import History
from recserve.engine.history_cache import Encoded, HistoryCache
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
            cache.keep(key, entry(5))
            assert cache.find(key, np.arange(9, dtype=np.int32), np.zeros(9, np.int64)) is None
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


def entry(n: int, first: int = 0) -> Encoded:
    past = np.arange(first, first + n, dtype=np.float32)[None, None, :, None].repeat(2, axis=0)
    return Encoded(np.arange(first, first + n, dtype=np.int32), np.zeros(n + 1, np.int64), past)


ENTRY_BYTES = entry(4).n_bytes
WORDS = st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 3), st.booleans()), max_size=40)


@given(WORDS)
def test_the_bytes_are_bounded_and_the_users_encoded_last_are_those_kept(
    words: list[tuple[str, int, bool]],
) -> None:
    cache, model = HistoryCache(3 * ENTRY_BYTES), dict[str, int]()
    asked = np.zeros(9, np.int64)
    for key, first, is_kept in words:
        if is_kept:
            model.pop(key, None)
            model[key] = first
            cache.keep(key, entry(4, first))
            if len(model) > 3:
                del model[next(iter(model))]
        else:
            found = cache.find(key, np.arange(first, first + 9, dtype=np.int32), asked)
            assert (found is not None) == (model.get(key) == first)
            if key in model:
                model[key] = model.pop(key)
        assert cache.n_bytes == len(model) * ENTRY_BYTES == len(cache) * ENTRY_BYTES


def test_who_does_not_fit_drives_nobody_out() -> None:
    cache = HistoryCache(2 * ENTRY_BYTES)
    cache.keep("a", entry(4))
    cache.keep("b", entry(4))
    cache.keep("b", entry(99))
    assert (len(cache), cache.n_bytes) == (1, ENTRY_BYTES)
    assert cache.find("a", np.arange(9, dtype=np.int32), np.zeros(9, np.int64)) is not None


@given(st.lists(st.integers(0, 3), max_size=9), st.lists(st.integers(0, 3), min_size=1, max_size=9))
def test_only_the_beginning_that_both_have_is_used(kept: list[int], asked: list[int]) -> None:
    cache = HistoryCache(1 << 20)
    past = np.array(kept, np.float32)[None, None, :, None]
    cache.keep("u", Encoded(np.array(kept, np.int32), np.zeros(len(kept) + 1, np.int64), past))
    found = cache.find("u", np.array(asked, np.int32), np.zeros(len(asked), np.int64))
    n = 0
    while n < min(len(kept), len(asked) - 1) and kept[n] == asked[n]:
        n += 1
    assert (0 if found is None else found.ravel().tolist()) == (kept[:n] or 0)
    # Another time of the same item is another history, and so is another time of the item after it.
    times = np.zeros(len(asked), np.int64)
    times[n:] = 1
    found = cache.find("u", np.array(asked, np.int32), times)
    assert (0 if found is None else found.ravel().tolist()) == (kept[: max(n - 1, 0)] or 0)
    assert cache.find("u", np.array(asked, np.int32), np.ones(len(asked), np.int64)) is None


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
    with pytest.raises(BundleInvalid, match="inputs and outputs of"):
        Engine.load(copy.folder, EngineConfig(history_cache_mb=4))


def test_the_setting_is_checked() -> None:
    with pytest.raises(ConfigError, match=r"engine\.history_cache_mb is -1"):
        EngineConfig(history_cache_mb=-1)
