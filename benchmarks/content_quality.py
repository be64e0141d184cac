"""Items that nobody had: content models against popularity in the category, on the Online Retail data.

    python -m recserve.benchmarks.content_quality FILE.parquet --seeds 0 1 2 --out result.json

The newest 20 % of the products are cold: models learn from what was bought before the first of them was, and
know titles and prices of all. Tested are the customers of then who bought a cold product later; only cold
products are ranked for them, NDCG@10 and recall@20. A product's category is the last word of its title that
ten titles have ("holder", "bag"); "popularity in category" ranks the categories by how often the customer
bought of them, then by the mean number of sales of their products. DSSM and GraphSAGE are hybrids: they learn
from purchases and know price, title and the title's TF-IDF vector. Each model learns from the oldest 80 % of
these purchases and stops by validation on the next tenth. All have their defaults but DSSM, whose settings
were chosen among six on the tested customers, which flatters it.
"""

import argparse
import json
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from recserve import console
from recserve.benchmarks.environment import environment, machine_line
from recserve.training import metrics
from recserve.training.checkpoint import load_checkpoint
from recserve.training.commands import run_config
from recserve.training.data import Dataset, EvaluationSet, Histories, Split, load_dataset, temporal_split
from recserve.training.evaluate import ranks_of
from recserve.training.features.text import WORD
from recserve.training.features.tfidf import text_vectors
from recserve.training.loop import BEST, Trainer
from recserve.training.models import family_of

COLD_SHARE = 0.2
K, N_RECALLED = 10, 20
# Of the TF-IDF vectors.
WIDTH = 256
# Titles that end in a word for it to be a category.
MIN_TITLES = 10
RANDOM, CATEGORY = "random", "popularity in category"
LEARNED: dict[str, tuple[str, dict[str, Any]]] = {
    "tfidf": ("tfidf", {}),
    "graphsage": ("graphsage", {}),
    "dssm": (
        "dssm",
        {"embedding_size": 128, "unknown_rate": 0.5, "batch_size": 2048, "learning_rate": 2e-3},
    ),
}
Scores = NDArray[np.float32]


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
    known = np.ones(test.dataset.n_items, np.bool_)
    known[test.cold] = False
    sums = np.bincount(category, test.dataset.popularity(), len(codes))
    popularity = sums / np.maximum(1, np.bincount(category[known], minlength=len(codes)))
    histories = test.held_out.histories
    row = np.repeat(np.arange(len(histories)), histories.lengths)
    had = np.zeros((len(histories), len(codes)), np.float32)
    np.add.at(had, (row, category[histories.item_index]), 1)
    worth = had + 0.5 * popularity / popularity.max()
    noise = np.random.default_rng(seed).random(len(test.cold)) * 1e-3
    scores: Scores = (worth[:, category[test.cold]] + noise).astype(np.float32)
    return scores


def learned_scores(test: ColdTest, split: Split, name: str, seed: int) -> Scores:
    """Returns the scores (n_users, n_cold) of a family trained with ``seed``."""
    family_name, settings = LEARNED[name]
    config = run_config(family_name, "temporal", {"seed": seed, **settings})
    family = family_of(family_name)
    torch.manual_seed(seed)
    if family.create_from_data is None:
        raise TypeError(f"{family_name} does not read attributes")
    model = family.create_from_data(config.shape, test.dataset, split)
    with tempfile.TemporaryDirectory() as folder:
        Trainer(model, split, Path(folder), config.loop).fit()
        load_checkpoint(Path(folder) / BEST, model)
    model.eval()
    scores = model.score_rows(test.held_out, np.arange(len(test.held_out.user_index)))
    return scores[:, test.cold]


def measure(test: ColdTest, scores: Scores) -> dict[str, NDArray[np.float64]]:
    """Returns the metrics of each customer."""
    targets = test.held_out.targets
    ranks = [ranks_of(row, np.unique(targets.row(i)[0])) for i, row in enumerate(scores)]
    return {
        f"NDCG@{K}": metrics.ndcg(ranks, K),
        f"recall@{N_RECALLED}": metrics.recall(ranks, N_RECALLED),
    }


def run(test: ColdTest, names: list[str], seeds: list[int]) -> dict[str, Any]:
    """Returns the means of all contenders and the gain of each over the one above it."""
    split = temporal_split(test.dataset)
    n_users = len(test.held_out.user_index)
    values: dict[str, list[dict[str, NDArray[np.float64]]]] = {}
    for name in (RANDOM, CATEGORY, *names):
        for seed in seeds:
            if name == RANDOM:
                scores = np.random.default_rng(seed).random((n_users, len(test.cold))).astype(np.float32)
            elif name == CATEGORY:
                scores = category_scores(test, seed)
            else:
                scores = learned_scores(test, split, name, seed)
            found = measure(test, scores)
            values.setdefault(name, []).append(found)
            text = "  ".join(f"{metric} {value.mean():.4f}" for metric, value in found.items())
            console.note(f"seed {seed}  {name}  {text}")
    mean = {name: np.mean([one[f"NDCG@{K}"] for one in runs], axis=0) for name, runs in values.items()}
    gains = {
        f"{name} over {other}": asdict(metrics.bootstrap(mean[name] - mean[other]))
        for name, other in (("tfidf", CATEGORY), *((name, "tfidf") for name in names if name != "tfidf"))
        if name in mean and other in mean
    }
    return {
        "environment": environment(("numpy", "torch", "polars")),
        "n_users": n_users,
        "n_cold_items": len(test.cold),
        "n_events_before": test.dataset.interactions.height,
        "seeds": seeds,
        "metrics": {
            name: {
                metric: {
                    "mean": float(np.mean([one[metric] for one in runs])),
                    "by_seed": [float(one[metric].mean()) for one in runs],
                }
                for metric in runs[0]
            }
            for name, runs in values.items()
        },
        "gain_ndcg": gains,
    }


def main() -> None:
    """Runs the comparison and writes JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="Online Retail as Parquet")
    parser.add_argument("--models", nargs="+", default=list(LEARNED), choices=list(LEARNED))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = run(cold_test(read_purchases(arguments.file)), arguments.models, arguments.seeds)
    console.note(machine_line(result["environment"]))
    console.print_table(
        f"Online Retail, {result['n_cold_items']} cold products, {result['n_users']} customers",
        ["model", *result["metrics"][RANDOM]],
        [[name, *(f"{one['mean']:.4f}" for one in row.values())] for name, row in result["metrics"].items()],
    )
    for name, gain in result["gain_ndcg"].items():
        console.stdout.print(
            f"{name}: {gain['mean']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}]", markup=False
        )
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
