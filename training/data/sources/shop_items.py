"""The items of the synthetic shop: categories, brands, prices, titles and a Zipf popularity."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from recserve.training.data.columns import ITEM_ID
from recserve.training.data.sources.shop_words import (
    ADJECTIVES,
    BRAND_BEGINNINGS,
    BRAND_ENDINGS,
    CATEGORIES,
    COLOURS,
    LANGUAGES,
    TITLE_TEMPLATES,
)

THINGS = tuple(thing for things in CATEGORIES.values() for thing in things)
N_SUBCATEGORIES = len(THINGS)
CATEGORY_OF = np.repeat(np.arange(len(CATEGORIES)), [len(things) for things in CATEGORIES.values()])
BRANDS = tuple(beginning + ending for ending in BRAND_ENDINGS for beginning in BRAND_BEGINNINGS)
BRANDS_PER_CATEGORY = len(BRANDS) // len(CATEGORIES)
LANGUAGE_SHARES = (0.6, 0.2, 0.2)
# Zipf–Mandelbrot: popularity 1 / (rank + offset), so that the first item is a bestseller and not the shop.
ZIPF_OFFSET = 10
# Titles are put together this many at a time, so that ten million fit into memory beside their parts.
TITLE_BATCH = 1_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Shelves:
    """Draws items by popularity from ranges of one order: shelf = (subcategory, brand), shelves in a row.

    order: (n_items,) int32 item_index; shelf_of: (n_items,) int32 by item_index; cumulative: (n_items + 1,)
    float64 popularity before each place of ``order``; shelf_start: (n_shelves + 1,) int64 places.
    """

    order: npt.NDArray[np.int32]
    shelf_of: npt.NDArray[np.int32]
    cumulative: npt.NDArray[np.float64]
    shelf_start: npt.NDArray[np.int64]

    @property
    def subcategory_start(self) -> npt.NDArray[np.int64]:
        """(N_SUBCATEGORIES + 1,) int64 places in ``order``."""
        return self.shelf_start[::BRANDS_PER_CATEGORY]

    @property
    def subcategory_weight(self) -> npt.NDArray[np.float64]:
        """Popularity of all items of each subcategory, (N_SUBCATEGORIES,) float64."""
        return np.diff(self.cumulative[self.subcategory_start])

    def draw(
        self, starts: npt.NDArray[np.int64], stops: npt.NDArray[np.int64], rng: np.random.Generator
    ) -> npt.NDArray[np.int32]:
        """Returns one item_index out of each non-empty range ``starts[i]:stops[i]``, by popularity."""
        low, high = self.cumulative[starts], self.cumulative[stops]
        wanted = low + rng.random(len(starts)) * (high - low)
        place = np.searchsorted(self.cumulative, wanted, side="right") - 1
        return self.order[np.clip(place, starts, stops - 1)]


def make_items(n_items: int, rng: np.random.Generator) -> tuple[pl.DataFrame, Shelves]:
    """Returns the item table (item_id, title, language, category, subcategory, brand, price) and shelves.

    Items are numbered as their ids sort. Memory grows with about 150 bytes an item.
    """
    share = rng.gamma(2.0, size=N_SUBCATEGORIES)
    subcategory = _choice(share, n_items, rng)
    # The square makes the first brands of a category the big ones.
    brand_of_category = (rng.random(n_items) ** 2 * BRANDS_PER_CATEGORY).astype(np.int32)
    brand = CATEGORY_OF[subcategory].astype(np.int32) * BRANDS_PER_CATEGORY + brand_of_category
    language = _choice(np.array(LANGUAGE_SHARES), n_items, rng)
    typical_price = rng.normal(3.2, 0.9, N_SUBCATEGORIES)
    price = np.exp(typical_price[subcategory] + rng.normal(0.0, 0.4, n_items)).round(2)
    table = pl.DataFrame(
        {
            ITEM_ID: numbered_ids("item", n_items),
            "title": _titles(subcategory, brand, language, rng),
            "language": pl.Series(LANGUAGES).gather(language),
            "category": pl.Series(tuple(CATEGORIES)).gather(CATEGORY_OF[subcategory]),
            "subcategory": pl.Series([english for english, _, _ in THINGS]).gather(subcategory),
            "brand": pl.Series(BRANDS).gather(brand),
            "price": np.maximum(price, 0.01),
        }
    )
    return table, _shelves(subcategory * BRANDS_PER_CATEGORY + brand_of_category, rng)


def numbered_ids(prefix: str, n: int) -> pl.Series:
    """Returns ``prefix-000``, ``prefix-001``, …: padded, so that they sort as they count."""
    numbers = pl.int_range(n, eager=True).cast(pl.String).str.zfill(len(str(n - 1)))
    return f"{prefix}-" + numbers


def _choice(weights: npt.NDArray[np.float64], n: int, rng: np.random.Generator) -> npt.NDArray[np.int32]:
    edges = np.cumsum(weights / weights.sum())[:-1]
    return np.searchsorted(edges, rng.random(n), side="right").astype(np.int32)


def _shelves(shelf_of: npt.NDArray[np.int32], rng: np.random.Generator) -> Shelves:
    order = np.argsort(shelf_of, kind="stable").astype(np.int32)
    rank = rng.permutation(len(order)) + 1
    cumulative = np.zeros(len(order) + 1)
    np.cumsum(1.0 / (rank + ZIPF_OFFSET), out=cumulative[1:])
    n_shelves = N_SUBCATEGORIES * BRANDS_PER_CATEGORY
    shelf_start = np.searchsorted(shelf_of[order], np.arange(n_shelves + 1))
    return Shelves(order, shelf_of, cumulative, shelf_start)


def _titles(
    subcategory: npt.NDArray[np.int32],
    brand: npt.NDArray[np.int32],
    language: npt.NDArray[np.int32],
    rng: np.random.Generator,
) -> pl.Series:
    batches = [
        _title_batch(subcategory[batch], brand[batch], language[batch], rng)
        for batch in (slice(start, start + TITLE_BATCH) for start in range(0, len(brand), TITLE_BATCH))
    ]
    return pl.concat(batches)


def _title_batch(
    subcategory: npt.NDArray[np.int32],
    brand: npt.NDArray[np.int32],
    language: npt.NDArray[np.int32],
    rng: np.random.Generator,
) -> pl.Series:
    n = len(brand)
    adjective = rng.integers(len(ADJECTIVES), size=n)
    colour = rng.integers(len(COLOURS), size=n)
    model = rng.integers(1000, 10_000, size=n)
    spoken: list[pl.Series] = []
    for number, name in enumerate(LANGUAGES):
        rows = language == number
        parts = pl.DataFrame(
            {
                "brand": pl.Series(BRANDS).gather(brand[rows]),
                "adjective": pl.Series([words[number] for words in ADJECTIVES]).gather(adjective[rows]),
                "thing": pl.Series([words[number] for words in THINGS]).gather(subcategory[rows]),
                "colour": pl.Series([words[number] for words in COLOURS]).gather(colour[rows]),
                "model": model[rows],
            }
        )
        template = TITLE_TEMPLATES[name]
        for part in parts.columns:
            template = template.replace(f"{{{part}}}", "{}")
        in_order = sorted(parts.columns, key=TITLE_TEMPLATES[name].index)
        spoken.append(parts.select(pl.format(template, *in_order)).to_series())
    # Back from "language after language" to the order of the items.
    place = np.empty(n, np.int64)
    place[np.argsort(language, kind="stable")] = np.arange(n)
    return pl.concat(spoken).gather(place)
