"""The words of items weighted by how rare they are, in a few dimensions: TF-IDF and latent semantic analysis.

Salton & Buckley 1988 (doi:10.1016/0306-4573(88)90021-0), Deerwester et al. 1990. The weight of a word in an
item is its count times ln((1 + n) / (1 + items with it)) + 1, each item's weights have length 1.
"""

from collections import Counter

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from recserve.training.features.attributes import TEXT_COLUMNS, TEXT_TYPES
from recserve.training.features.text import WORD, unit_rows

# The most frequent words: what is beyond says what the id says.
MAX_WORDS = 20_000
# A word of one item alone relates it to nothing.
MIN_ITEMS_PER_WORD = 2
# Of the subspace iteration: enough for singular values that fall slowly, as those of texts do.
POWER_STEPS = 4


def words_of(items: pl.DataFrame) -> list[Counter[str]]:
    """Returns the words of each row: those of title and description, and each value of other text columns."""
    found: list[Counter[str]] = [Counter() for _ in range(items.height)]
    for name in items.columns[1:]:
        column = items[name]
        kind = column.dtype
        is_list = isinstance(kind, pl.List) and isinstance(kind.inner, TEXT_TYPES)
        if not is_list and not isinstance(kind, TEXT_TYPES):
            continue
        for words, value in zip(found, column.to_list(), strict=True):
            if value is None:
                continue
            if name in TEXT_COLUMNS:
                words.update(WORD.findall(str(value).lower()))
            else:
                words.update(f"{name}={one}" for one in (value if is_list else [value]))
    return found


def text_vectors(items: pl.DataFrame, size: int) -> NDArray[np.float32]:
    """Returns (n_items, size) float32 whose inner products approximate the cosines of the TF-IDF weights.

    Rows have length 1, or 0 for an item without a word. The same items give the same vectors.
    """
    words_by_item = words_of(items)
    n_items_with = Counter(word for words in words_by_item for word in words)
    ranked = sorted(n_items_with, key=lambda word: (-n_items_with[word], word))[:MAX_WORDS]
    places = {word: i for i, word in enumerate(ranked) if n_items_with[word] >= MIN_ITEMS_PER_WORD}
    entries = [
        (row, places[word], count)
        for row, words in enumerate(words_by_item)
        for word, count in words.items()
        if word in places
    ]
    rows, columns, counts = np.array(entries, np.int64).reshape(-1, 3).T
    return latent(tfidf(rows, columns, counts, (items.height, len(places))), size)


def tfidf(
    rows: NDArray[np.integer],
    columns: NDArray[np.integer],
    counts: NDArray[np.integer],
    shape: tuple[int, int],
) -> torch.Tensor:
    """Returns the weights as a sparse tensor of ``shape``: a column is a word, that a row has so often."""
    n_rows, n_columns = shape
    rarity = np.log((1 + n_rows) / (1 + np.bincount(columns, minlength=n_columns))) + 1
    weights = counts * rarity[columns]
    lengths = np.sqrt(np.bincount(rows, weights**2, minlength=n_rows))
    unit = torch.from_numpy((weights / lengths[rows]).astype(np.float32))
    place = torch.from_numpy(np.stack([rows, columns]).astype(np.int64))
    return torch.sparse_coo_tensor(place, unit, shape, check_invariants=True)


def latent(weights: torch.Tensor, size: int) -> NDArray[np.float32]:
    """Returns (n, size) float32: the rows of ``weights`` (n, m, sparse) in their strongest directions.

    Rows have length 1, or 0 where there is nothing; columns beyond the rank are 0.
    """
    n_rows, n_columns = weights.shape
    vectors = np.zeros((n_rows, size), np.float32)
    rank = min(size, n_rows, n_columns)
    if rank:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            left, values, _ = torch.svd_lowrank(weights, q=rank, niter=POWER_STEPS)
        vectors[:, :rank] = (left * values).numpy()
    return unit_rows(vectors)
