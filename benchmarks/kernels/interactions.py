"""Who took what: the interactions that the factorised catalogues are learned from."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int32]
Lists = tuple[npt.NDArray[np.int64], Indices]

N_TOPICS = 300
TOPICS_PER_USER = 4
PER_USER, PER_ITEM = 40, 30
RANK_POWER = 0.15  # within a topic, popularity falls as rank^(RANK_POWER − 1)


class Interactions(NamedTuple):
    """users, items: (n,) int32, one interaction each, a user's in the order of time where there is one."""

    users: Indices
    items: Indices
    n_users: int
    n_items: int

    def by_user(self) -> Lists:
        """The items of every user: (indptr, item_indices)."""
        return _lists(self.users, self.items, self.n_users)

    def by_item(self) -> Lists:
        """The users of every item: (indptr, user_indices)."""
        return _lists(self.items, self.users, self.n_items)


def topic_mixture(rng: np.random.Generator, n_items: int, min_users: int) -> Interactions:
    """A synthetic catalogue of topics with popular and rare items.

    Every user likes up to four of 300 topics; within a topic, popularity falls as a power of the rank. There
    are 30 interactions per item and 40 per user.
    """
    n_users = max(min_users, n_items * PER_ITEM // PER_USER)
    topic_share = np.arange(1, N_TOPICS + 1) ** -0.7
    topic_share /= topic_share.sum()
    item_topic = np.sort(rng.choice(N_TOPICS, size=n_items, p=topic_share))
    first = np.searchsorted(item_topic, np.arange(N_TOPICS + 1))
    users = np.repeat(np.arange(n_users, dtype=np.int32), PER_USER)
    liked = rng.choice(N_TOPICS, size=(n_users, TOPICS_PER_USER), p=topic_share)
    share = rng.dirichlet([0.7] * TOPICS_PER_USER, n_users).cumsum(axis=1)
    choice = (rng.random(len(users))[:, None] > share[users]).sum(axis=1).clip(0, TOPICS_PER_USER - 1)
    topic = liked[users, choice]
    size = np.maximum(first[topic + 1] - first[topic], 1)
    draw = rng.random(len(users)) * ((size + 1.0) ** RANK_POWER - 1) + 1
    rank = (draw ** (1 / RANK_POWER) - 1).astype(np.int64)
    items = np.minimum(first[topic] + np.minimum(rank, size - 1), n_items - 1)
    return Interactions(users, items.astype(np.int32), n_users, n_items)


def of_dataset(spec: str) -> Interactions:
    """The interactions of a data set by its name, see recserve.training.data.load_dataset."""
    # Polars is needed here alone.
    from recserve import console
    from recserve.training.data import load_dataset

    dataset = load_dataset(spec, on_note=console.note)
    table = dataset.interactions
    return Interactions(
        table["user_index"].to_numpy().astype(np.int32),
        table["item_index"].to_numpy().astype(np.int32),
        dataset.n_users,
        dataset.n_items,
    )


def _lists(rows: Indices, columns: Indices, n_rows: int) -> Lists:
    order = np.argsort(rows, kind="stable")
    indptr = np.concatenate([[0], np.bincount(rows, minlength=n_rows).cumsum()]).astype(np.int64)
    return indptr, columns[order]
