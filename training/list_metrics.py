"""What recommended lists are like beyond being right: one definition of each quality.

Lists are (n_users, k) int32 item indices, best first; a short list ends in −1. U is the number of users of
training, u_i how many of them had item i. Definitions, a user without any item counting 0 unless said:

novelty (self-information): mean of −log2(max(u_i, 1) / U) over the list (Zhou et al. 2010,
doi:10.1073/pnas.1000488107). Average popularity: mean of u_i over the list. Serendipity: Σ over hits at
rank r of max(p(r) − p(r_pop), 0) / k with p(r) = (n_items + 1 − r) / n_items and r_pop the dense rank of u_i
(equal counts share one), p = 0 for an item nobody had. Diversity: mean over the pairs of a list of the
Jaccard distance of the items' categories; vector diversity: of 1 − the cosine of their vectors.
Miscalibration: KL(p ‖ 0.99 q + 0.01 p), p and q the shares of the categories in the history and in the list,
an item with c categories giving each 1/c (Steck 2018, doi:10.1145/3240323.3240372). Gini (0: every item as
often, towards 1: always the same):
Σ (2i − n − 1) c_(i) / (n Σ c) over all n items of the catalogue, c_(i) ascending, how often each is
recommended. tests/training/test_metric_peers.py compares them with RecTools'.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recserve.kernels import count_repeats
from recserve.training.data import Dataset, Histories

Lists = NDArray[np.int32]
Values = NDArray[np.float64]

# Attributes that name what an item is, the finest that is usually there first.
CATEGORY_COLUMNS = ("genres", "categories", "category")
# Of p in the list's shares: without it one category that is missing makes the divergence infinite.
SMOOTHING = 0.01


@dataclass(frozen=True, slots=True, eq=False)
class Background:
    """What the lists are seen against.

    n_train_users: U; users_of_item: (n_items,) int64, u_i; categories: (n_items, n_categories) bool, or None
    where nothing is known of the items.
    """

    n_train_users: int
    users_of_item: NDArray[np.int64]
    categories: NDArray[np.bool_] | None = None

    @classmethod
    def of(cls, train: Histories, dataset: Dataset) -> "Background":
        """Returns the background of models trained on ``train``."""
        (_, items), _ = count_repeats((train.indptr, train.item_index))
        return cls(
            n_train_users=int((train.lengths > 0).sum()),
            users_of_item=np.bincount(items, minlength=dataset.n_items),
            categories=categories_of(dataset),
        )


def categories_of(dataset: Dataset) -> NDArray[np.bool_] | None:
    """Returns which item is in which category, (n_items, n_categories); None where no attribute says it."""
    name = next((name for name in CATEGORY_COLUMNS if name in dataset.items.columns), None)
    if name is None:
        return None
    rows = dataset.items[name].to_list()
    sets = [{value} if isinstance(value, str) else set(value or ()) - {None} for value in rows]
    names = sorted(set().union(*sets))
    place = {category: index for index, category in enumerate(names)}
    table = np.zeros((len(rows), len(names)), bool)
    for row, found in enumerate(sets):
        table[row, [place[category] for category in found]] = True
    return table if names else None


def beyond_accuracy(
    lists: Lists, is_hit: NDArray[np.bool_], histories: Histories, background: Background
) -> dict[str, Values]:
    """Returns every quality of the lists that belongs to a user, (n_users,) each, by its name.

    Those of categories are left out where the background has none.
    """
    per_user = {
        "novelty": novelty(lists, background),
        "average popularity": average_popularity(lists, background),
        "serendipity": serendipity(lists, is_hit, background),
    }
    if background.categories is not None:
        per_user["diversity"] = intra_list_diversity(lists, background.categories)
        per_user["miscalibration"] = miscalibration(lists, histories, background.categories)
    return per_user


def novelty(lists: Lists, background: Background) -> Values:
    """Returns the mean self-information of each list in bits, (n_users,)."""
    rarity = -np.log2(np.maximum(background.users_of_item, 1) / max(1, background.n_train_users))
    return _mean_over_list(lists, rarity)


def average_popularity(lists: Lists, background: Background) -> Values:
    """Returns the mean number of training users of each list's items, (n_users,)."""
    return _mean_over_list(lists, background.users_of_item.astype(np.float64))


def serendipity(lists: Lists, is_hit: NDArray[np.bool_], background: Background) -> Values:
    """Returns the serendipity of each list, (n_users,); ``is_hit`` has the shape of ``lists``."""
    users_of_item, k = background.users_of_item, lists.shape[1]
    n_items = len(users_of_item)
    rank_by_popularity = np.unique(-users_of_item, return_inverse=True)[1] + 1
    for_anybody = np.where(users_of_item > 0, (n_items + 1 - rank_by_popularity) / n_items, 0.0)
    for_user = (n_items + 1 - np.arange(1, k + 1)) / n_items
    surprise = np.maximum(for_user - for_anybody[lists], 0)
    gains: Values = (surprise * is_hit * (lists >= 0)).sum(axis=1) / k
    return gains


def intra_list_diversity(lists: Lists, categories: NDArray[np.bool_]) -> Values:
    """Returns the mean Jaccard distance of the pairs of each list, (n_users,); lists of one item have 0."""
    found = np.zeros(len(lists))
    for user, row in enumerate(lists):
        items = categories[row[row >= 0]].astype(np.float32)
        if len(items) > 1:
            shared, sizes = items @ items.T, items.sum(axis=1)
            either = sizes[:, None] + sizes - shared
            distance = 1 - np.divide(shared, either, out=np.zeros_like(shared), where=either > 0)
            np.fill_diagonal(distance, 0)
            found[user] = distance.sum() / (len(items) * (len(items) - 1))
    return found


def vector_diversity(lists: Lists, vectors: NDArray[np.float32]) -> Values:
    """Returns the mean cosine distance of the pairs of each list, (n_users,); lists of one item have 0.

    vectors: (n_items, d); a zero vector is at distance 1 from all.
    """
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.maximum(norms, 1e-30)
    found = np.zeros(len(lists))
    for user, row in enumerate(lists):
        items = unit[row[row >= 0]]
        if len(items) > 1:
            pairs = len(items) * (len(items) - 1)
            cosines = items @ items.T
            found[user] = 1 - (cosines.sum() - np.trace(cosines)) / pairs
    return found


def miscalibration(lists: Lists, histories: Histories, categories: NDArray[np.bool_]) -> Values:
    """Returns each list's divergence from its user's history, (n_users,), 0 where either has no category."""
    shares = _shares_of_items(categories)
    found = np.zeros(len(lists))
    for user, row in enumerate(lists):
        p = shares[histories.row(user)[0]].sum(axis=0)
        q = shares[row[row >= 0]].sum(axis=0)
        if p.sum() > 0 and q.sum() > 0:
            p, q = p / p.sum(), q / q.sum()
            liked = p > 0
            mixed = (1 - SMOOTHING) * q[liked] + SMOOTHING * p[liked]
            found[user] = (p[liked] * np.log(p[liked] / mixed)).sum()
    return found


def category_shares(histories: Histories, categories: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Returns the shares of the categories in each history, (n_users, n_categories), zeros where none is."""
    of_items = _shares_of_items(categories)
    shares = np.zeros((len(histories), categories.shape[1]), np.float32)
    for user, row in enumerate(shares):
        counts = of_items[histories.row(user)[0]].sum(axis=0)
        row[:] = counts / max(counts.sum(), 1e-300)
    return shares


def _shares_of_items(categories: NDArray[np.bool_]) -> Values:
    sizes = categories.sum(axis=1, keepdims=True)
    shares: Values = np.divide(categories, sizes, out=np.zeros(categories.shape), where=sizes > 0)
    return shares


def recommended_counts(lists: Lists, n_items: int) -> NDArray[np.int64]:
    """Returns how many lists each item is in, (n_items,)."""
    return np.bincount(lists[lists >= 0], minlength=n_items)


def coverage(counts: NDArray[np.int64]) -> float:
    """Returns the share of the catalogue that is in at least one list."""
    return float((counts > 0).mean())


def gini(counts: NDArray[np.int64]) -> float:
    """Returns how unequally the items are recommended, 0 where nothing is."""
    total, n = int(counts.sum()), len(counts)
    if total == 0:
        return 0.0
    weights = 2 * np.arange(1, n + 1) - n - 1
    return float((weights * np.sort(counts)).sum() / (n * total))


def _mean_over_list(lists: Lists, value_of_item: Values) -> Values:
    there = lists >= 0
    values = np.where(there, value_of_item[lists], 0.0)
    means: Values = values.sum(axis=1) / np.maximum(there.sum(axis=1), 1)
    return means
