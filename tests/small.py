"""Small data that several tests are made of, and what must be learned of it."""

import numpy as np

from recserve.training.data import Histories
from recserve.training.models.tables import ItemTable


def histories(rows: list[list[int]], seconds: int = 1) -> Histories:
    """Returns the histories of users who had ``rows``, each event ``seconds`` after the one before."""
    row = np.repeat(np.arange(len(rows)), [len(items) for items in rows])
    flat = np.array([item for items in rows for item in items], np.int32)
    return Histories.from_sorted(row, flat, seconds * np.arange(len(flat), dtype=np.int64), len(rows))


def assert_two_groups_are_known(model: ItemTable) -> None:
    """Items 0 to 9 were met together, and 10 to 19; nobody met item 20."""
    vectors = model.item_embeddings.numpy()
    np.testing.assert_allclose(np.linalg.norm(vectors[:20], axis=1), 1, rtol=1e-5)
    assert not vectors[20].any()
    likeness = vectors @ vectors.T
    assert likeness[:10, :10].mean() > likeness[:10, 10:20].mean() + 0.5
    scores = model.queries(np.array([0], np.int32), histories([[1, 2]])) @ vectors.T
    assert scores[0, :10].min() > scores[0, 10:20].max()
