"""Item vectors and queries to search: without any structure, and as matrix factorisation leaves them."""

from typing import Any

import numpy as np
import numpy.typing as npt

from recserve.kernels import fold_in

Vectors = npt.NDArray[np.float32]

N_QUERIES = 4096
ALS_ROUNDS = 3


def make(kind: str, n_items: int, dim: int, seed: int) -> tuple[Vectors, Vectors]:
    """Returns (item vectors, queries) of ``kind`` "gaussian" or "als"."""
    rng = np.random.default_rng(seed)
    if kind == "gaussian":
        vectors = rng.standard_normal((n_items, dim), dtype=np.float32)
        return vectors, rng.standard_normal((N_QUERIES, dim), dtype=np.float32)
    return als(rng, n_items, dim)


def als(rng: np.random.Generator, n_items: int, dim: int) -> tuple[Vectors, Vectors]:
    """Factors of implicit ALS on a synthetic catalogue of topics with popular and rare items.

    Every user likes up to four of 300 topics; within a topic, popularity falls as a power of the rank. There
    are 30 interactions per item and 40 per user.
    """
    n_users = max(N_QUERIES, n_items * 30 // 40)
    users, items = interactions(rng, n_items, n_users, 40)
    by_user = lists(users, items, n_users)
    by_item = lists(items, users, n_items)
    weights = np.full(len(users), 20.0, np.float32)
    item_vectors = rng.normal(0, 0.1, (n_items, dim)).astype(np.float32)
    for _ in range(ALS_ROUNDS):
        user_vectors = fold_in(item_vectors, by_user, weights, reg=0.05)
        item_vectors = fold_in(user_vectors, by_item, weights, reg=0.05)
    return item_vectors, fold_in(item_vectors, by_user, weights, reg=0.05)[:N_QUERIES]


def interactions(rng: np.random.Generator, n_items: int, n_users: int, per_user: int) -> Any:
    """Returns (user_index, item_index) int32 of n_users · per_user interactions."""
    n_topics = 300
    topic_share = np.arange(1, n_topics + 1) ** -0.7
    topic_share /= topic_share.sum()
    item_topic = np.sort(rng.choice(n_topics, size=n_items, p=topic_share))
    first = np.searchsorted(item_topic, np.arange(n_topics + 1))
    users = np.repeat(np.arange(n_users, dtype=np.int32), per_user)
    liked = rng.choice(n_topics, size=(n_users, 4), p=topic_share)
    share = rng.dirichlet([0.7] * 4, n_users).cumsum(axis=1)
    choice = (rng.random(len(users))[:, None] > share[users]).sum(axis=1).clip(0, 3)
    topic = liked[users, choice]
    size = np.maximum(first[topic + 1] - first[topic], 1)
    power = 0.15  # the density of a rank falls as rank^-0.85
    rank = ((rng.random(len(users)) * ((size + 1.0) ** power - 1) + 1) ** (1 / power) - 1).astype(np.int64)
    items = np.minimum(first[topic] + np.minimum(rank, size - 1), n_items - 1)
    return users, items.astype(np.int32)


def lists(rows: Any, columns: Any, n_rows: int) -> Any:
    """Groups ``columns`` by row: (indptr, columns)."""
    order = np.argsort(rows, kind="stable")
    indptr = np.concatenate([[0], np.bincount(rows, minlength=n_rows).cumsum()]).astype(np.int64)
    return indptr, columns[order]
