"""The catalogues of the benchmark are what they are called, and kept once they have been learned."""

from pathlib import Path

import numpy as np
import pytest

from recserve.benchmarks.kernels import data, two_tower
from recserve.benchmarks.kernels.interactions import Interactions, of_dataset, topic_mixture
from recserve.benchmarks.kernels.options import DATA
from recserve.errors import InvalidRequest

SHOP = "synthetic-shop:n_items=1000,n_users=500,seed=1"


def test_every_kind_has_a_generator() -> None:
    assert {"gaussian", *data.LEARNED} == set(DATA)


@pytest.mark.parametrize("kind", ["als", "als-shop", "two-tower"])
def test_what_was_learned_is_kept(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, queries = data.make(kind, 1000, 8, 1, tmp_path)
    assert (vectors.shape, vectors.dtype) == ((1000, 8), np.float32)
    assert queries.shape == (data.N_QUERIES, 8)
    assert len(list(tmp_path.rglob("*"))) == 3  # a folder and two files, nothing half written

    def fail(*_: object) -> data.Catalogue:
        raise AssertionError("learned again")

    monkeypatch.setitem(data.LEARNED, kind, fail)
    again = data.make(kind, 1000, 8, 1, tmp_path)
    assert np.array_equal(again[0], vectors)
    assert np.array_equal(again[1], queries)
    with pytest.raises(AssertionError, match="learned again"):
        data.make(kind, 1000, 8, 2, tmp_path)


def test_ml_100k_has_its_own_size(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="1682"):
        data.make("als-ml-100k", 1000, 8, 1, tmp_path)


def test_gaussian_depends_on_the_seed_alone(tmp_path: Path) -> None:
    first, again, other = (data.make("gaussian", 50, 8, seed, tmp_path)[0] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert list(tmp_path.iterdir()) == []


def test_als_explains_the_interactions() -> None:
    """What a user took ranks near the top of the catalogue."""
    interactions = of_dataset(SHOP)
    vectors, users = data.factorise(interactions, 16, 5, np.random.default_rng(0))
    scores = users @ vectors.T
    taken = scores[interactions.users, interactions.items]
    assert (scores[interactions.users] < taken[:, None]).mean() > 0.9
    assert not users[np.bincount(interactions.users, minlength=len(users)) == 0].any()


def test_interactions_are_grouped_both_ways() -> None:
    interactions = Interactions(
        np.array([1, 0, 1], np.int32), np.array([2, 2, 0], np.int32), n_users=3, n_items=3
    )
    assert [part.tolist() for part in interactions.by_user()] == [[0, 1, 3, 3], [2, 2, 0]]
    assert [part.tolist() for part in interactions.by_item()] == [[0, 1, 1, 3], [1, 1, 0]]


def test_topics_have_popular_items() -> None:
    interactions = topic_mixture(np.random.default_rng(0), 2000, 100)
    counts = np.sort(np.bincount(interactions.items, minlength=2000))[::-1]
    assert len(interactions.users) == interactions.n_users * 40
    assert counts[:200].sum() > counts[200:].sum() / 4


def test_the_two_towers_put_targets_near() -> None:
    """Next to the history that it followed, an item scores higher than others do."""
    interactions = of_dataset(SHOP)
    vectors, queries = two_tower.train(interactions, 16, 400, seed=0)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.allclose(np.linalg.norm(queries, axis=1), 1, atol=1e-5)
    histories, targets = two_tower.examples(interactions)
    assert len(histories) == len(targets) == len(interactions.items) - 500
    assert (histories[0, 1:] == interactions.n_items).all()
    assert histories[0, 0] == interactions.items[0]
    assert targets[0] == interactions.items[1]
