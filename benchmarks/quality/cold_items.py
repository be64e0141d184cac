"""Items that nobody had: the newest 20 % of the products of Online Retail, ranked for who bought one later.

Models learn from what was bought before the first of the cold products was, and know titles and prices of
all. Tested are the customers of then who bought a cold product later; only cold products are ranked for
them. A product's category is the last word of its title that ten titles have ("holder", "bag"); "popularity
in category" ranks the categories by how often the customer bought of them, then by the mean number of sales
of their products. Each model learns from the oldest 80 % of these purchases and stops by validation on the
next tenth. The hybrids know price, title and the title's TF-IDF vector.
"""

import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recserve.benchmarks.quality.protocol import Ask, Protocol, Rows, Values, train
from recserve.errors import InvalidRequest
from recserve.training import cold_items, metrics
from recserve.training.cold_items import CATEGORY, METRICS, N_RECALLED, RANDOM, K
from recserve.training.data import Dataset, EvaluationSet, Histories, load_dataset, temporal_split
from recserve.training.evaluate import ranks_of
from recserve.training.features.text import WORD
from recserve.training.features.tfidf import text_vectors

COLD_SHARE = 0.2
# Of the TF-IDF vectors.
WIDTH = 256
# Titles that end in a word for it to be a category.
MIN_TITLES = 10
Scores = NDArray[np.float32]


class ColdItems(Protocol):
    """Ranks the cold items alone; no other library is asked."""

    metrics = METRICS

    def __init__(self, test: "ColdTest", seed: int) -> None:
        self._test, self._seed = test, seed
        self._split = temporal_split(test.dataset)
        self.owner = test.held_out.user_index.astype(np.int64)

    def ours(self, model: str, settings: Mapping[str, Any], seed: int) -> Values:
        return measure(self._test, self._scores(model, settings, seed))

    def theirs(self, ask: Ask) -> Values:
        raise InvalidRequest("peer", found="asked for cold items", expected="none")

    def figures(self, values: Values, rows: Rows) -> dict[str, float]:
        return {name: float(values[name][rows].mean()) for name in self.metrics}

    def _scores(self, model: str, settings: Mapping[str, Any], seed: int) -> Scores:
        test, n_users = self._test, len(self.owner)
        if model == RANDOM:
            return np.random.default_rng(seed).random((n_users, len(test.cold))).astype(np.float32)
        if model == CATEGORY:
            return category_scores(test, seed)
        trained = train(model, "temporal", test.dataset, self._split, seed, settings)
        return trained.score_rows(test.held_out, np.arange(n_users))[:, test.cold]


def of_online_retail(path: Path, seed: int) -> ColdItems:
    """Reads the Parquet file of Online Retail."""
    return ColdItems(cold_test(read_purchases(path)), seed)


@dataclass(frozen=True, slots=True)
class ColdTest:
    """What is known before the cut and what was bought after it.

    dataset: events before the cut, items of all times · cold: (n,) int64, the indices of the cold items ·
    held_out: customers with a cold purchase after the cut; their targets are places in ``cold``.
    """

    dataset: Dataset
    cold: NDArray[np.int64]
    held_out: EvaluationSet


def read_purchases(path: Path) -> pl.DataFrame:
    """Returns the lines of known customers that bought a product: user, item, title, price and when."""
    return (
        pl.read_parquet(path)
        .filter(
            pl.col("CustomerID").is_not_null(),
            pl.col("Quantity") > 0,
            pl.col("UnitPrice") > 0,
            ~pl.col("InvoiceNo").str.starts_with("C"),
            pl.col("StockCode").str.contains(r"^\d{5}"),
        )
        .select(
            user=pl.col("CustomerID").cast(pl.Int64).cast(pl.String),
            item="StockCode",
            title="Description",
            price="UnitPrice",
            timestamp=pl.col("InvoiceDate").dt.epoch("s"),
        )
        .sort("timestamp", maintain_order=True)
    )


def cold_test(purchases: pl.DataFrame) -> ColdTest:
    """Cuts where the first of the newest items was first bought."""
    items = purchases.group_by("item", maintain_order=True).agg(pl.col("title", "price", "timestamp").first())
    newest = items.tail(int(items.height * COLD_SHARE))
    cut = newest["timestamp"][0]
    with tempfile.TemporaryDirectory() as folder:
        events, known = Path(folder, "events.parquet"), Path(folder, "items.parquet")
        purchases.filter(pl.col("timestamp") < cut).select("user", "item", "timestamp").write_parquet(events)
        vectors = text_vectors(items.select("item", "title"), WIDTH)
        described = items.select("item", "title", "price", pl.Series("embedding", vectors.tolist()))
        described.write_parquet(known)
        dataset = load_dataset(events, items_path=known, every_item=True)
    places = {item: place for place, item in enumerate(newest["item"].to_list())}
    users = {user: index for index, user in enumerate(dataset.users["user_id"].to_list())}
    later = purchases.filter(
        pl.col("item").is_in(newest["item"].implode()), pl.col("user").is_in(list(users))
    ).unique(["user", "item"], keep="first", maintain_order=True)
    user = later["user"].replace_strict(users, return_dtype=pl.Int32).to_numpy()
    place = later["item"].replace_strict(places, return_dtype=pl.Int32).to_numpy()
    order = np.argsort(user, kind="stable")
    tested, row = np.unique(user[order], return_inverse=True)
    targets = Histories.from_sorted(row, place[order], later["timestamp"].to_numpy()[order], len(tested))
    indices = {item: index for index, item in enumerate(dataset.items["item_id"].to_list())}
    cold = np.array([indices[item] for item in places], np.int64)
    return ColdTest(dataset, cold, EvaluationSet(tested, dataset.histories().take(tested), targets))


def category_scores(test: ColdTest, seed: int) -> Scores:
    """Returns (n_users, n_cold): how much of a category the user had, then how popular the category is.

    Products of one category are worth the same and are put in random order.
    """
    titles = [WORD.findall(title.lower()) for title in test.dataset.items["title"].to_list()]
    n_titles_with = Counter(word for words in titles for word in set(words))
    named = [next((w for w in reversed(words) if n_titles_with[w] >= MIN_TITLES), "") for words in titles]
    codes = {name: code for code, name in enumerate(dict.fromkeys(named))}
    category = np.array([codes[name] for name in named])
    noise = np.random.default_rng(seed).random(len(test.cold)) * 1e-3
    worth = cold_items.category_scores(
        category, test.dataset.popularity(), test.held_out.histories, test.cold
    )
    scores: Scores = (worth + noise).astype(np.float32)
    return scores


def measure(test: ColdTest, scores: Scores) -> dict[str, NDArray[np.float64]]:
    """Returns the metrics of each customer."""
    targets = test.held_out.targets
    ranks = [ranks_of(row, np.unique(targets.row(i)[0])) for i, row in enumerate(scores)]
    return dict(zip(METRICS, (metrics.ndcg(ranks, K), metrics.recall(ranks, N_RECALLED)), strict=True))
