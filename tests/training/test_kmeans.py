"""k-means and the clusters made of it."""

import numpy as np
import pytest

from recserve.errors import InvalidRequest
from recserve.training.kmeans import k_means, nearest_centre
from recserve.training.models.clusters import Clusters, ClustersConfig
from tests.small import histories


def test_clouds_far_apart_are_found() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, 300)
    middles = np.array([[0, 0], [10, 0], [0, 10], [10, 10]], np.float32)
    vectors = (middles[truth] + rng.normal(0, 0.5, (300, 2))).astype(np.float32)
    centres, nearest = k_means(vectors, 4, np.random.default_rng(1))
    for cluster in range(4):
        assert len(set(truth[nearest == cluster].tolist())) == 1
        np.testing.assert_allclose(centres[cluster], vectors[nearest == cluster].mean(axis=0), atol=1e-4)


def test_every_vector_is_with_its_nearest_centre_and_an_iteration_never_hurts() -> None:
    vectors = np.random.default_rng(0).normal(size=(200, 5)).astype(np.float32)
    centres, nearest = k_means(vectors, 7, np.random.default_rng(1))
    distances = ((vectors[:, None] - centres) ** 2).sum(axis=2)
    np.testing.assert_allclose(distances[np.arange(200), nearest], distances.min(axis=1), rtol=1e-4)
    _, start = nearest_centre(vectors, vectors[:7].copy())
    assert distances.min(axis=1).sum() < start.sum()


def test_more_centres_than_vectors_repeat() -> None:
    vectors = np.array([[0, 0], [0, 0], [1, 1]], np.float32)
    centres, nearest = k_means(vectors, 5, np.random.default_rng(0))
    np.testing.assert_array_equal(centres[nearest], vectors)


def test_a_cluster_gets_what_is_popular_in_it() -> None:
    rng = np.random.default_rng(0)
    # Even users have items 0 to 9, odd ones 10 to 19; the last user has none.
    rows = [(rng.choice(10, 5, replace=False) + 10 * (user % 2)).tolist() for user in range(40)]
    train = histories([*rows, []])
    model = Clusters(ClustersConfig(n_clusters=2), 41, 20)
    assert model.fit_epoch(train, epoch=1, seed=0) >= 0
    np.testing.assert_allclose(model.item_embeddings.numpy().sum(axis=0), 1, rtol=1e-5)
    known = histories([rows[0], rows[1], [3, 4]])
    scores = model.queries(np.array([0, 1, 40], np.int32), known) @ model.item_embeddings.numpy().T
    counts = np.bincount(np.concatenate(rows), minlength=20)
    np.testing.assert_allclose(scores[0], np.where(np.arange(20) < 10, counts, 0) / 100, atol=1e-6)
    np.testing.assert_allclose(scores[1], np.where(np.arange(20) < 10, 0, counts) / 100, atol=1e-6)
    assert scores[2, :10].min() > scores[2, 10:].max()
    with pytest.raises(InvalidRequest, match="n_clusters"):
        ClustersConfig(n_clusters=0)
