"""What learning changes of a slate: how much, for whom, and with which logged probability."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recserve.engine import Engine, EngineConfig, Request
from recserve.engine.bundle.rules import PipelineConfig, Rules
from recserve.engine.client import RecommenderClient
from recserve.engine.feedback_client import FeedbackClient, impressions, new_event
from recserve.engine.online.config import OnlineConfig
from recserve.engine.online.learning import OnlineLearning
from recserve.engine.online.stage import Choice, OnlineStage
from recserve.engine.server.app import Server
from recserve.engine.server.config import ServerConfig
from recserve.engine.server.remembering import Remembering
from recserve.engine.state.config import StateConfig
from recserve.engine.state.state import State, open_state
from recserve.errors import ConfigError
from tests.engine.online.world import LIKED, N_ITEMS, learn_all, logged, new_learner, settings

TIMEOUT_SECONDS = 60
K = 5
SCORES = np.linspace(1.0, 0.0, N_ITEMS, dtype=np.float32)
ITEMS = np.random.default_rng(0).permutation(N_ITEMS).astype(np.int32)


def new_stage(algorithm: str, *, n_visits: int = 600, **fields: Any) -> OnlineStage:
    config = settings(algorithm, **fields)
    learner = learn_all(new_learner(config), logged(2, n_visits)) if n_visits else new_learner(config)
    return OnlineStage(learner, config, lambda user_id: user_id, seed=1)


def choose(stage: OnlineStage, **changes: Any) -> Choice:
    arguments = {"user_id": "u1", "context": {}, "k": K, "scores": SCORES, "items": ITEMS, **changes}
    may_explore = arguments.pop("may_explore", True)
    return stage.choose(**arguments, may_explore=may_explore)


def test_who_learned_nothing_changes_nothing() -> None:
    choice = choose(new_stage("ftrl", n_visits=0))
    assert choice.items.tolist() == ITEMS.tolist()
    np.testing.assert_allclose(choice.scores, SCORES)
    assert choice.propensities.tolist() == [1.0] * K


@pytest.mark.parametrize("strength", [0.0, 0.3, 2.0])
def test_scores_move_by_so_much_at_most(strength: float) -> None:
    stage = new_stage("ftrl", strength=strength)
    padded = {
        "scores": np.append(SCORES, np.float32(-np.inf)),
        "items": np.append(ITEMS, np.int32(-1)),
    }
    choice = choose(stage, **padded)
    before = dict(zip(ITEMS.tolist(), SCORES.tolist(), strict=True))
    moved = [score - before[item] for item, score in zip(choice.items, choice.scores.tolist(), strict=True)]
    assert max(map(abs, moved)) == pytest.approx(strength, rel=0.3)
    assert max(map(abs, moved)) <= strength + 1e-6
    assert (np.diff(choice.scores) <= 0).all()
    n_liked = len(LIKED.intersection(choice.items[:10].tolist()))
    assert n_liked == 10 if strength == 2.0 else n_liked < 10
    no_one = choose(stage, scores=np.empty(0, np.float32), items=np.empty(0, np.int32))
    assert no_one.items.shape == (0,)


def test_slates_that_pins_fill_have_a_propensity_for_every_place() -> None:
    few = choose(new_stage("ftrl", epsilon=0.5), scores=SCORES[:2], items=ITEMS[:2], may_explore=False)
    assert len(few.items) == 2
    assert few.propensities.tolist() == [1.0] * K


def test_equal_scores_follow_what_was_learned() -> None:
    choice = choose(new_stage("ftrl"), scores=np.zeros(N_ITEMS, np.float32))
    assert LIKED.issuperset(choice.items[:10].tolist())


def test_epsilon_swaps_one_item_with_the_propensity_it_says() -> None:
    stage = new_stage("ftrl", epsilon=0.5)
    expected = choose(stage, may_explore=False)
    assert expected.propensities.tolist() == [1.0] * K
    places: Counter[tuple[int, int]] = Counter()
    n = 4000
    for _ in range(n):
        choice = choose(stage)
        places.update(enumerate(choice.items[:K].tolist()))
        assert sorted(choice.items.tolist()) == sorted(ITEMS.tolist())
        differs = choice.items[:K] != expected.items[:K]
        assert differs.tolist() == choice.explored.tolist()
        assert choice.explored.sum() <= 1
        told = np.where(differs, 0.5 / (K * (N_ITEMS - K)), 1 - 0.5 / K)
        np.testing.assert_allclose(choice.propensities, told)
    for place, item in enumerate(expected.items[:K].tolist()):
        assert places.pop((place, item)) / n == pytest.approx(1 - 0.5 / K, abs=0.03)
    # Every other item came to every place, about as often.
    assert len(places) == K * (N_ITEMS - K)
    assert max(places.values()) < 5 * n * 0.5 / (K * (N_ITEMS - K))


def test_thompson_draws_slates_and_tells_their_propensities() -> None:
    stage = new_stage("thompson", width=3.0, n_visits=100)
    expected = choose(stage, may_explore=False)
    choices = [choose(stage) for _ in range(300)]
    found = Counter(choice.items[0] for choice in choices)
    assert len(found) > 1
    for item, count in found.items():
        told = [choice.propensities[0] for choice in choices if choice.items[0] == item]
        assert min(told) >= 1 / 32
        # Each slate is one of its own draws: that adds a share of what is left to the mean.
        chance = count / len(choices)
        assert np.mean(told) == pytest.approx(chance + (1 - chance) / 32, abs=0.1)
    for choice in choices:
        assert choice.explored.tolist() == (choice.items[:K] != expected.items[:K]).tolist()


@pytest.mark.parametrize("algorithm", ["ftrl", "linucb", "thompson"])
@pytest.mark.parametrize("n_known", [0, 1, N_ITEMS])
def test_items_that_came_after_the_bundle_are_served(algorithm: str, n_known: int) -> None:
    items = np.append(ITEMS[:n_known], np.arange(N_ITEMS, N_ITEMS + 3, dtype=np.int32)).astype(np.int32)
    scores = np.linspace(1.0, 0.0, len(items), dtype=np.float32)
    choice = choose(new_stage(algorithm, n_visits=100), scores=scores, items=items)
    assert sorted(choice.items.tolist()) == sorted(items.tolist())
    assert np.isfinite(choice.scores).all()


def test_linucb_tries_what_it_does_not_know() -> None:
    known, wide = (new_stage("linucb", width=width, n_visits=50) for width in (0.0, 50.0))
    user = next(one.event.user_id for one in logged(2, 50) if one.event.action == "click")
    assert choose(known, user_id=user).items[:K].tolist() != choose(wide, user_id=user).items[:K].tolist()
    assert choose(wide, user_id=user).propensities.tolist() == [1.0] * K


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    pytest.importorskip("apsw")
    pytest.importorskip("cryptography")
    with open_state(StateConfig(url=f"sqlite:///{tmp_path}/events")) as state:
        state.load()
        yield state


def test_an_engine_learns_and_its_slates_know_after_a_restart(bundle_folder: Path, state: State) -> None:
    config = OnlineConfig(algorithm="ftrl", strength=2.0, learning_rate=1.0)
    request = Request(user_id="somebody", k=3)
    learning = OnlineLearning(config, state)
    with Engine.load(bundle_folder) as plain, Engine.load(bundle_folder, online=learning.stage) as engine:
        before = plain.recommend(request)
        assert before.propensities == ()
        first = engine.recommend(request)
        assert [item.item_id for item in first.items] == [item.item_id for item in before.items]
        assert first.propensities == (1.0, 1.0, 1.0)
        assert "online" in first.stage_ns
        liked = engine.recommend(Request(k=30)).items[-1].item_id
        events = []
        for i in range(40):
            shown = {"user_id": f"u{i}", "slate_id": f"s{i}"}
            other = first.items[i % 3].item_id
            events += [new_event(item_id=item, action="impression", **shown) for item in (liked, other)]
            events.append(new_event(item_id=liked, **shown))
        state.record(events)
        [thread] = learning._threads
        assert thread.wait_until(len(events), TIMEOUT_SECONDS)
        assert engine.recommend(request).items[0].item_id == liked
        assert engine.why_not(request, liked).numbers["rank"] == 1
        assert engine.stats()["online_examples"] == len(events)
        # Rules still choose, pins stand where they must, and nothing is left to chance.
        capped = engine.recommend(Request(k=3, rules=Rules(caps={"item_id": 1}, min_score=-1e6)))
        assert (capped.items[0].item_id, capped.propensities) == (liked, (1.0, 1.0, 1.0))
        # What else chance brings has no propensity that is known.
        drawn = engine.recommend(Request(k=3, rules=Rules(quotas={"model": 1, "explore": 1})))
        assert (len(drawn.items), drawn.propensities) == (3, ())
        assert engine.rank_each([request], degraded=True)[0].choice is None  # type: ignore[union-attr]
        alone = [engine.recommend(Request(user_id=f"u{i}", k=7)).items for i in range(4)]
        together = engine.recommend_many([Request(user_id=f"u{i}", k=7) for i in range(4)])
        assert [[item.item_id for item in items] for items in alone] == [
            [item.item_id for item in slate.items] for slate in together
        ]
    assert learning._threads == []
    again = OnlineLearning(config, state)
    with Engine.load(bundle_folder, online=again.stage) as engine:
        # At once: the snapshot that the first engine left when it was closed.
        assert engine.recommend(request).items[0].item_id == liked
    other = OnlineLearning(OnlineConfig(algorithm="linucb"), state)
    with Engine.load(bundle_folder, online=other.stage) as engine:
        assert engine.stats()["online_rollbacks"] == 0
    again.close()
    other.close()


def test_what_is_shown_to_learn_is_told_recorded_and_reported(
    bundle_folder: Path, tmp_path: Path, run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    pytest.importorskip("apsw")
    pytest.importorskip("cryptography")
    url, online = f"sqlite:///{tmp_path}/events", OnlineConfig(algorithm="ftrl", epsilon=1.0)
    config = ServerConfig(port=0, default_deadline_ms=30_000)
    with Remembering(StateConfig(url=url), EngineConfig(), config, online) as remembering:
        server = Server(config, router=remembering.router, extra_methods=remembering.methods())
        address = server.start()
        remembering.load()
        server.serve(Engine.load(bundle_folder, observed=remembering.observed, online=remembering.online))
        with (
            RecommenderClient(address, timeout=TIMEOUT_SECONDS) as recommender,
            FeedbackClient(address, timeout=TIMEOUT_SECONDS) as feedback,
        ):
            slates = {f"u{i}": recommender.recommend(Request(user_id=f"u{i}", k=4)) for i in range(12)}
            for user, slate in slates.items():
                [rank] = slate.explored
                assert slate.propensities[rank - 1] == pytest.approx(1 / (4 * 196))
                assert sum(slate.propensities) == pytest.approx(3 * 0.75 + 1 / (4 * 196))
                told = impressions(slate, user_id=user)
                assert [event.explored for event in told] == [i == rank for i in (1, 2, 3, 4)]
                assert [event.propensity for event in told] == list(slate.propensities)
                clicked = next(item for item in slate.items if item.rank != rank)
                feedback.record(
                    [*told, new_event(user_id=user, item_id=clicked.item_id, slate_id=slate.slate_id)]
                )
        server.stop()
    _, out, _ = run_cli("report", "--state", url)
    # Twelve clicks on 48 impressions, each at a place that had its item with probability 3/4.
    assert "25.00" in out
    assert f"{100 * 12 / 0.75 / 48:.2f}" in out
    assert list((tmp_path / "events.online").glob("*.npz"))


def test_a_load_that_fails_leaves_no_learner(bundle_folder: Path, state: State) -> None:
    learning = OnlineLearning(OnlineConfig(algorithm="ftrl"), state)
    with pytest.raises(ConfigError, match=r"pipeline\.filter"):
        Engine.load(
            bundle_folder, EngineConfig(pipeline=PipelineConfig(filter="colour = 1")), online=learning.stage
        )
    assert learning._threads == []


def test_learning_needs_a_log_and_vectors_of_some_size() -> None:
    with pytest.raises(ConfigError, match=r"online\.algorithm is ftrl without state\.url"):
        Remembering(StateConfig(), EngineConfig(), ServerConfig(), OnlineConfig(algorithm="ftrl"))
