"""What the log teaches, and that it teaches the same however it is read."""

import signal
import subprocess
import sys
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from recserve.engine.online.config import ALGORITHMS, OnlineConfig
from recserve.engine.online.drift import MIN_CHUNKS
from recserve.engine.online.heads import Asked
from recserve.engine.online.learner import CHUNK, Snapshot
from recserve.engine.online.snapshots import SnapshotFile
from recserve.engine.online.users import Example, Users, hash_of
from recserve.engine.state.config import StateConfig
from recserve.engine.state.events import EXPORT, LEARN, SERVE, Event
from recserve.engine.state.state import LoggedEvent, State, open_state, read_log
from recserve.errors import ConfigError, Unavailable
from tests.engine.online.world import (
    LIKED,
    N_ITEMS,
    VECTORS,
    learn_all,
    learn_from,
    logged,
    new_learner,
    settings,
    state_of,
    visits,
)

TIMEOUT_SECONDS = 60
ALL = np.arange(N_ITEMS, dtype=np.int32)
NOBODY = Asked((), ())


def seen(users: Users, *events: Any, hour: int = 0) -> list[Example | None]:
    """Lets users do (action, item) on slate "s", or (action, item, fields)."""
    found = []
    for action, item, *rest in events:
        fields = {"user_id": "u", "slate_id": "s", "purposes": SERVE | LEARN, **(rest[0] if rest else {})}
        event = Event(item_id="", action=action, **fields)
        found.append(users.follow(LoggedEvent(0, 3600 * hour, event), item))
    return found


def test_a_click_teaches_once_what_its_impression_was() -> None:
    users = Users(settings())
    seen(users, ("purchase", 9, {"slate_id": ""}))
    shown, other = seen(users, ("impression", 1, {"rank": 3, "context": {"a": "b"}}), ("impression", 2))
    assert shown == Example((9,), 1, 3, (hash_of("a", "b"),), clicked=False)
    [clicked] = seen(users, ("click", 2))
    assert other is not None
    assert clicked == other._replace(clicked=True)
    # The click on item 2 made the query another one, but not that of the slate it stood in.
    [clicked, *nothing] = seen(users, ("purchase", 1), ("click", 1), ("click", 2), ("impression", 1))
    assert clicked == shown._replace(clicked=True)
    assert nothing == [None] * 3
    assert users.recent("u") == (9, 2, 1, 1, 2)


@pytest.mark.parametrize(
    ("before", "event"),
    [
        ([], ("click", 1)),
        ([("impression", 1)], ("click", 2)),
        ([("impression", 1)], ("click", 1, {"slate_id": "t"})),
        ([("impression", 1)], ("click", 1, {"user_id": "v"})),
        ([("impression", 1)], ("view", 1)),
        ([("impression", 1)], ("click", 1, {"purposes": SERVE | EXPORT})),
        (
            [("impression", 1), ("impression", 1, {"slate_id": "t"}), ("click", 1)],
            ("click", 1, {"slate_id": "t"}),
        ),
        ([], ("impression", -1)),
        ([], ("impression", 1, {"slate_id": ""})),
        ([("impression", 1), *(("impression", 1, {"slate_id": f"{i}"}) for i in range(4))], ("click", 1)),
    ],
)
def test_what_teaches_nothing(before: list[Any], event: Any) -> None:
    users = Users(settings())
    seen(users, *before)
    assert seen(users, event) == [None]


def test_one_user_teaches_so_much_in_an_hour() -> None:
    users = Users(settings(impressions_per_hour=3, clicks_per_hour=2))
    many = [("impression", item) for item in range(5)]
    clicks = [("click", item) for item in range(5)]
    assert [one is not None for one in seen(users, *many)] == [True] * 3 + [False] * 2
    assert [one is not None for one in seen(users, *clicks)] == [True] * 2 + [False] * 3
    assert seen(users, ("impression", 7, {"user_id": "v"}))[0] is not None
    assert [one is not None for one in seen(users, *clicks, hour=1)] == [False, False, True, False, False]


def test_who_clicks_far_more_often_than_others_teaches_little_by_it() -> None:
    users = Users(settings(click_excess=2.0))
    for user in range(50):
        shown = [("impression", item, {"user_id": f"u{user}"}) for item in range(10)]
        clicked = [("click", 0, {"user_id": f"u{user}"})]
        assert None not in seen(users, *shown, *clicked)
    # One in ten is usual: three clicks are free, and twice the usual share of ten more (5.04 at the start).
    for item in range(10):
        seen(users, ("impression", item, {"user_id": "robot"}))
    counted = [seen(users, ("click", item, {"user_id": "robot"}))[0] is not None for item in range(10)]
    assert counted == [True] * 6 + [False] * 4


def test_memory_is_bounded_and_an_erased_user_is_nobody() -> None:
    users = Users(settings(max_users=2, recent=2))
    seen(users, *(("click", item, {"slate_id": ""}) for item in (1, 2, 3)))
    assert users.recent("u") == (2, 3)
    users.erase("u")
    assert users.recent("u") == ()
    assert seen(users, ("impression", 1)) == [None]
    seen(users, *(("click", 1, {"user_id": user}) for user in "abc"))
    assert [users.recent(user) for user in "abc"] == [(), (1,), (1,)]
    seen(users, ("click", 5, {"purposes": LEARN, "user_id": "c"}))
    assert users.recent("c") == (1,)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_liked_items_are_found(algorithm: str) -> None:
    vectors_tell = algorithm != "ftrl"
    learner = learn_all(new_learner(settings(algorithm, width=0.0)), logged(2, 1500))
    recent = tuple(LIKED)[:5] if vectors_tell else ()
    lifts = learner.head.lifts(Asked(recent, ()), ALL)
    liked = np.isin(ALL, list(LIKED))
    if vectors_tell:
        # A linear function of eight numbers cannot tell ten of forty random items apart, but it orders.
        assert lifts[liked].mean() > lifts[~liked].mean()
    else:
        assert lifts[liked].min() > lifts[~liked].max()
    assert learner.n_rollbacks == 0
    assert new_learner(settings(algorithm, width=0.0)).head.lifts(NOBODY, ALL) == pytest.approx(
        np.zeros(N_ITEMS)
    )


def test_context_is_learned_by_item() -> None:
    """Item 1 is clicked in the morning, item 2 in the evening, and neither at the other time."""
    head = new_learner(settings()).head
    morning, evening = hash_of("time", "morning"), hash_of("time", "evening")
    for _ in range(200):
        for item, time in ((1, morning), (2, evening), (1, evening), (2, morning)):
            example = Example((), item, 1, (time,), clicked=False)
            head.learn([example])
            if (item == 1) == (time == morning):
                head.learn([example._replace(clicked=True)])
    some = np.array([1, 2], np.int32)
    assert np.diff(head.lifts(Asked((), (morning,)), some))[0] < -0.5
    assert np.diff(head.lifts(Asked((), (evening,)), some))[0] > 0.5
    assert np.diff(head.lifts(NOBODY, some))[0] == pytest.approx(0, abs=0.1)


def test_the_linear_model_is_the_regression_of_what_was_shown() -> None:
    config = settings("thompson", l2=2.0)
    learner, users = learn_all(new_learner(config), logged(3, 200)), Users(config)
    followed = [users.follow(one, int(one.event.item_id[1:])) for one in logged(3, 200)]
    examples = [example for example in followed if example is not None]
    unit = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)

    def features(example: Example) -> Any:
        mean = unit[list(example.recent)].mean(axis=0) if example.recent else np.zeros(8)
        query = mean / max(np.linalg.norm(mean), 1e-9)
        return np.concatenate([[1.0], 8 * query * unit[example.item]])

    shown = np.array([features(one) for one in examples if not one.clicked])
    clicked = np.array([features(one) for one in examples if one.clicked])
    moments = 2.0 * np.eye(9) + shown.T @ shown
    theta = np.linalg.solve(moments, clicked.sum(axis=0))
    arrays = learner.head.arrays()
    np.testing.assert_allclose(arrays["theta"], theta, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(arrays["inverse"], np.linalg.inv(moments), rtol=1e-6, atol=1e-9)
    asked, noise = Asked((1, 2), ()), np.random.default_rng(0).standard_normal((20_000, 9))
    draws = learner.head.draws(asked, ALL, noise)
    assert draws is not None
    candidates = np.array([features(Example((1, 2), item, 1, (), False)) for item in range(N_ITEMS)])
    rate = (len(clicked) + 1) / (len(shown) + 2)
    widths = np.sqrt(np.einsum("ij,jk,ik->i", candidates, np.linalg.inv(moments), candidates))
    np.testing.assert_allclose(draws.std(axis=0) * rate, widths, rtol=0.05)
    np.testing.assert_allclose(draws.mean(axis=0) * rate, candidates @ theta, atol=0.01)
    upper = learn_all(new_learner(settings("linucb", l2=2.0, width=1.5)), logged(3, 200))
    np.testing.assert_allclose(
        upper.head.lifts(asked, ALL) * rate, candidates @ theta + 1.5 * widths, rtol=1e-5
    )


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@hypothesis_settings(derandomize=True, deadline=None, max_examples=4)
@given(page=st.integers(1, 400), cut=st.integers(1, 3400))
def test_however_the_log_is_read_it_teaches_the_same(algorithm: str, page: int, cut: int) -> None:
    """In pages of any length, and with a restart that finds the last snapshot, to the last bit."""
    events = logged(4, 600)
    snapshots: list[Snapshot] = []
    whole = learn_all(new_learner(settings(algorithm)), events)
    killed = new_learner(settings(algorithm))
    killed._on_snapshot = snapshots.append
    learn_all(killed, events[:cut], page)
    again = new_learner(settings(algorithm))
    if snapshots:
        again.restore(snapshots[-1])
    learn_all(again, events, page)
    assert state_of(again) == state_of(whole)
    assert bool(snapshots) == (killed.n_examples >= MIN_CHUNKS * CHUNK)


def test_a_model_that_was_never_good_is_not_followed() -> None:
    """Steps far too large: worse than the mean click rate."""
    snapshots: list[Snapshot] = []
    learner = new_learner(settings("ftrl", learning_rate=1e4, l2=1e-9))
    learner._on_snapshot = snapshots.append
    assert learner.is_trusted
    learn_all(learner, logged(5, 500, n_users=1000))
    assert not learner.is_trusted
    assert (learner.n_rollbacks, snapshots) == (0, [])


@pytest.mark.parametrize("algorithm", ["ftrl", "linucb"])
def test_a_model_that_became_bad_goes_back_to_the_last_good_one(algorithm: str) -> None:
    snapshots: list[Snapshot] = []
    learner = new_learner(settings(algorithm, recent=1))
    learner._on_snapshot = snapshots.append
    events = logged(5, 1600)
    learn_all(learner, events[:6000])
    good = snapshots[-1]
    assert good.is_good
    # What a fault, or very many robots, could make of it.
    arrays = learner.head.arrays()
    name = "z" if algorithm == "ftrl" else "theta"
    arrays[name] = np.random.default_rng(0).choice([-50.0, 50.0], arrays[name].shape)
    learner.head.load(arrays)
    for one in events[6000:]:
        learn_all(learner, [one])
        if learner.n_rollbacks:
            break
    assert not snapshots[-1].is_good
    assert snapshots[-1].applied_seq > good.applied_seq
    assert {name: array.tobytes() for name, array in snapshots[-1].arrays.items()} == {
        name: array.tobytes() for name, array in good.arrays.items()
    }
    assert learner.is_trusted


def test_a_user_may_be_erased_while_an_event_of_theirs_is_followed() -> None:
    users = Users(settings())
    erasures: list[Future[None]] = []

    class Erasing(OrderedDict[str, Any]):
        """Has the user erased by another thread as soon as they are looked up."""

        def get(self, key: str, default: Any = None) -> Any:
            found = super().get(key, default)
            if not erasures:
                erasures.append(pool.submit(users.erase, key))
                # In vain where the erasure waits for its turn.
                wait(erasures, timeout=0.1)
            return found

    with ThreadPoolExecutor(1) as pool:
        seen(users, ("click", 1))
        users._users = Erasing(users._users)
        seen(users, ("click", 2))
    assert erasures[0].exception() is None
    assert users.recent("u") == ()


def test_learning_goes_on_when_the_log_answers_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("apsw")
    answering = State.events_after
    failures = [Unavailable("log", found="away", expected="there")]

    def events_after(state: State, after: int, *, limit: int) -> Any:
        if failures:
            raise failures.pop()
        return answering(state, after, limit=limit)

    monkeypatch.setattr(State, "events_after", events_after)
    with open_state(StateConfig(url=f"sqlite:///{tmp_path}/events")) as state:
        state.load()
        thread = learn_from(state, settings(), tmp_path)
        n_events = state.record(next(visits(1, 1))).n_stored
        assert thread.wait_until(n_events, TIMEOUT_SECONDS)
        assert not failures
        thread.close()


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_a_damaged_snapshot_is_learned_again(tmp_path: Path, damage: bytes | None) -> None:
    file = SnapshotFile(tmp_path / "deep" / "model.npz")
    assert file.read() is None
    learner = learn_all(new_learner(settings()), logged(6, 100))
    file.write(learner.snapshot())
    assert list(file.path.parent.iterdir()) == [file.path]
    read = file.read()
    assert read is not None
    other = new_learner(settings())
    other.restore(read)
    assert state_of(other) == state_of(learner)
    whole = file.path.read_bytes()
    file.path.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    assert file.read() is None


@pytest.mark.parametrize("algorithm", ["ftrl", "linucb"])
def test_every_event_is_learned_once_whatever_kills_the_process(tmp_path: Path, algorithm: str) -> None:
    pytest.importorskip("apsw")
    for kill in range(2):
        command = [sys.executable, "-m", "tests.engine.online.world", tmp_path, algorithm, kill]
        with subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            # Beyond the first snapshots; what the pipe holds makes the place of the kill a random one.
            for _ in range(450):
                assert process.stdout.readline()
            process.send_signal(signal.SIGKILL)
    state_config = StateConfig(url=f"sqlite:///{tmp_path}/events")
    events = list(read_log(state_config))
    assert len({one.event.event_id for one in events}) == len(events)
    found = SnapshotFile(tmp_path / "model.npz").read()
    assert found is not None
    assert 0 < found.applied_seq <= events[-1].seq
    with open_state(state_config) as state:
        state.load()
        thread = learn_from(state, settings(algorithm), tmp_path)
        assert thread.wait_until(events[-1].seq, TIMEOUT_SECONDS)
        # What comes now is learned too.
        [more] = visits(9, 1)
        state.record(more)
        assert thread.wait_until(events[-1].seq + len(more), TIMEOUT_SECONDS)
        oracle = learn_all(new_learner(settings(algorithm)), list(read_log(state_config)), page=1)
        assert state_of(thread.learner) == state_of(oracle)
        user_key, users = state.user_key(more[0].user_id), thread.learner.users
        assert users.recent(user_key) == oracle.users.recent(user_key) != ()
        state.erase(more[0].user_id).result()
        assert users.recent(user_key) == ()
        thread.close()


@pytest.mark.parametrize(
    "fields",
    [
        {"algorithm": "ftlr"},
        {"strength": -1.0},
        {"epsilon": 2.0},
        {"algorithm": "thompson", "epsilon": 0.1},
        {"l2": 0.0},
        {"recent": 0},
        {"l1": float("nan")},
    ],
)
def test_settings_that_mean_nothing_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"online\."):
        replace(OnlineConfig(), **fields)
