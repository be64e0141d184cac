"""The synthetic shop: the same seed gives the same bytes, and there is something in it to learn."""

import numpy as np
import polars as pl
import pytest

from recserve.training.data import Dataset, leave_one_out, load_dataset
from recserve.training.data.sources.shop_items import BRANDS, THINGS
from recserve.training.data.sources.shop_words import ADJECTIVES, CATEGORIES, COLOURS, LANGUAGES
from recserve.training.data.sources.synthetic_shop import ShopOptions


@pytest.fixture(scope="module")
def shop() -> Dataset:
    """A shop of 3,000 items."""
    return load_dataset("synthetic-shop:n_items=3000,n_users=1000,n_events=20000,seed=7")


def test_the_seed_decides_everything(shop: Dataset) -> None:
    again = load_dataset(shop.source)
    assert again.sha256 == shop.sha256
    assert again.items.equals(shop.items)
    assert load_dataset(shop.source.replace("seed=7", "seed=8")).sha256 != shop.sha256


def test_sizes_are_exact_and_tables_complete(shop: Dataset) -> None:
    assert (shop.n_items, shop.n_users, shop.interactions.height) == (3000, 1000, 20_000)
    assert shop.report.kept == shop.report.rows_read == 20_000
    assert shop.items.columns == [
        *("item_id", "title", "language", "category", "subcategory", "brand", "price"),
    ]
    assert sum(shop.items.null_count().row(0)) == 0
    assert shop.items["item_id"].is_sorted()
    assert (shop.items["price"] >= 0.01).all()
    assert shop.histories().lengths.min() >= 3
    assert set(shop.interactions["action"]) == {"view", "cart", "purchase"}
    seconds_of_users = shop.interactions.select("user_index", "timestamp")
    assert not seconds_of_users.is_duplicated().any()


def test_titles_are_composed_in_the_language_of_the_item(shop: Dataset) -> None:
    position = {language: number for number, language in enumerate(LANGUAGES)}
    thing_of = {words[0]: words for words in THINGS}
    for title, language, subcategory, brand in shop.items.select(
        "title", "language", "subcategory", "brand"
    ).iter_rows():
        assert thing_of[subcategory][position[language]] in title
        assert brand in title
    shares = shop.items["language"].value_counts(normalize=True).sort("language")["proportion"].to_list()
    assert np.allclose(shares, [0.6, 0.2, 0.2], atol=0.03)


def test_the_words_are_complete_and_distinct() -> None:
    assert len(CATEGORIES) == 20
    assert len(THINGS) == len(set(THINGS)) == 120
    assert len(BRANDS) == len(set(BRANDS)) == 800
    for words in (THINGS, ADJECTIVES, COLOURS):
        assert all(len(spoken) == len(LANGUAGES) and all(spoken) for spoken in words)


def test_popularity_has_a_head_and_a_long_tail(shop: Dataset) -> None:
    popularity = np.sort(shop.popularity())[::-1]
    assert popularity[:300].sum() > 0.4 * popularity.sum()
    assert popularity[0] < 0.05 * popularity.sum()
    assert (popularity > 0).mean() > 0.8


def test_a_session_is_short_and_stays_near_one_subcategory(shop: Dataset) -> None:
    joined = shop.interactions.with_columns(
        shop.items["subcategory"].gather(shop.interactions["item_index"]),
    ).with_columns(
        gap=pl.col("timestamp").diff().over("user_index"),
        same=(pl.col("subcategory") == pl.col("subcategory").shift()).over("user_index"),
    )
    inside = joined.filter(pl.col("gap") < 1800)
    between = joined.filter(pl.col("gap") >= 1800)
    assert 0.65 < inside.height / (inside.height + between.height) < 0.85
    assert np.median(inside["gap"]) < 120 < 86_400 < np.median(between["gap"])
    assert inside["same"].sum() / inside.height > 0.6 > between["same"].sum() / between.height


def test_the_next_subcategory_follows_from_the_last_one(shop: Dataset) -> None:
    test = leave_one_out(shop).test
    subcategory = shop.items["subcategory"].rank("dense").to_numpy()
    last = test.histories.item_index[test.histories.indptr[1:] - 1]
    hit_rate = (subcategory[last] == subcategory[test.targets.item_index]).mean()
    popularity = np.bincount(subcategory, weights=shop.popularity())
    always_the_most_popular = popularity.max() / popularity.sum()
    assert hit_rate > 0.5 > 10 * always_the_most_popular


def test_tastes_drift(shop: Dataset) -> None:
    subcategory = shop.items["subcategory"].rank("dense").to_numpy().astype(np.int64) - 1
    histories = shop.histories()

    def similarity(start: float, stop: float) -> float:
        """Mean cosine between the subcategories of the first quarter and of another part."""
        cosines = []
        for user in np.flatnonzero(histories.lengths >= 40).tolist():
            seen = subcategory[histories.row(user)[0]]
            n = len(seen)
            parts = (seen[: n // 4], seen[int(start * n) : int(stop * n)])
            a, b = (np.bincount(part, minlength=len(THINGS)) for part in parts)
            cosines.append(float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b))))
        return float(np.mean(cosines))

    # A gap after the first quarter, so that no session is in both parts.
    assert similarity(0.35, 0.6) > 1.3 * similarity(0.75, 1.0)


def test_the_core_leaves_out_untouched_items() -> None:
    shop = load_dataset("synthetic-shop:seed=3", min_item_interactions=2)
    assert shop.popularity().min() >= 2
    assert shop.report.below_core > 0
    assert shop.report.kept == shop.interactions.height
    assert shop.items["title"].null_count() == 0


def test_options_fill_in_what_is_not_said() -> None:
    options = ShopOptions.parse("n_items=100000,seed=7")
    assert str(options) == "n_items=100000,n_users=50000,n_events=1000000,seed=7"
    assert ShopOptions.parse(str(options)) == options
