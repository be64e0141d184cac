"""Fits what makes an embedding of an item's attributes, on the items whose embeddings were learned.

Ridge regression, as in Gantner et al., "Learning attribute-to-feature mappings for cold-start
recommendations", 2010 (doi:10.1109/ICDM.2010.129). A fifth of the items is held out to choose the ridge and
to see what it is worth.
"""

import numpy as np
from numpy.typing import NDArray

from recserve.engine.bundle import BundleWriter
from recserve.engine.bundle.item_encoder import ItemEncoderEntry, described
from recserve.errors import CheckFailed
from recserve.training.data import Dataset
from recserve.training.data.columns import EMBEDDING
from recserve.words import unit_rows

FILE = "item_encoder.npy"
WIDTH = 1024
RIDGES = (0.1, 1.0, 10.0, 100.0)
# More tell nothing new of a thousand buckets.
MAX_ITEMS = 50_000
SEED = 7
# Standard errors; the best of a few ridges is above the mean item by chance.
SURE = 3.0


class NoItemEncoder(CheckFailed):
    """What is known of items does not surely say where they lie."""


def write_item_encoder(
    writer: BundleWriter, dataset: Dataset, item_embeddings: NDArray[np.float32]
) -> ItemEncoderEntry:
    """Fits and writes the item encoder of a bundle.

    Raises :class:`CheckFailed` where it says no more of items that it has not seen than the mean item does.
    """
    table = dataset.items.drop(EMBEDDING, strict=False)
    learned = np.flatnonzero((dataset.popularity() > 0) & np.any(item_embeddings != 0, axis=1))
    rows = np.random.default_rng(SEED).permutation(learned)[:MAX_ITEMS]
    attributes = table.columns[1:]
    known = described(table[rows].to_dicts(), attributes, WIDTH)
    vectors = np.asarray(item_embeddings[rows], np.float32)
    n_held_out = len(rows) // 5
    if not n_held_out:
        raise NoItemEncoder("items to fit an item encoder on", found=len(rows), expected="5 or more")
    cosines = {ridge: _held_out(known, vectors, ridge, n_held_out) for ridge in RIDGES}
    best = max(RIDGES, key=lambda ridge: cosines[ridge].mean())
    without = _held_out(np.zeros_like(known), vectors, best, n_held_out)
    gain = cosines[best] - without
    if not gain.mean() > SURE * gain.std() / n_held_out**0.5:
        raise NoItemEncoder(
            "item encoder (mean cosine with embeddings of items that it has not seen)",
            found=f"{cosines[best].mean():.3f}",
            expected=f"surely above that of the mean item, {without.mean():.3f}",
            cure="Leave out --item-encoder, or give --items that say more.",
        )
    writer.add_array(FILE, _fit(known, vectors, best))
    quality = {"cosine": float(cosines[best].mean()), "cosine_of_mean": float(without.mean())}
    length = float(np.linalg.norm(vectors, axis=1).mean())
    return ItemEncoderEntry(FILE, WIDTH, list(attributes), length, quality)


def _fit(known: NDArray[np.float32], vectors: NDArray[np.float32], ridge: float) -> NDArray[np.float32]:
    """Returns (width + 1, d): the last row, for every item, is not held down."""
    described_items = np.column_stack([known, np.ones(len(known), np.float32)]).astype(np.float64)
    gram = described_items.T @ described_items
    gram[np.arange(len(gram) - 1), np.arange(len(gram) - 1)] += ridge
    gram[-1, -1] += 1e-9
    weights: NDArray[np.float32] = np.linalg.solve(gram, described_items.T @ vectors).astype(np.float32)
    return weights


def _held_out(
    known: NDArray[np.float32], vectors: NDArray[np.float32], ridge: float, n_held_out: int
) -> NDArray[np.float32]:
    """Returns the cosine of each of the first ``n_held_out`` items with what a fit on the others makes it."""
    weights = _fit(known[n_held_out:], vectors[n_held_out:], ridge)
    found = known[:n_held_out] @ weights[:-1] + weights[-1]
    cosines: NDArray[np.float32] = (unit_rows(found) * unit_rows(vectors[:n_held_out])).sum(axis=1)
    return cosines
