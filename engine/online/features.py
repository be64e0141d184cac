"""Items and users as vectors that both algorithms learn from, the same when learning and when serving."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from recserve.engine.online.users import Example

Numbers = NDArray[np.float64]
Items = NDArray[np.int32]


class ItemVectors:
    """The unit vectors of a catalogue. The query of a user is the direction of their newest items.

    That query is made of the log alone, so replaying the log gives the same examples; the query of the
    bundle's encoder would not be known any more.
    """

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        """``vectors``: (n_items, d) float32, kept as they are."""
        self._vectors = vectors
        self._scale = 1.0 / np.maximum(np.linalg.norm(vectors, axis=1).astype(np.float64), 1e-12)
        self.n_items, self.dim = vectors.shape

    def unit(self, items: Items | Sequence[int]) -> Numbers:
        """Returns the unit vectors of ``items``, (n, d)."""
        return np.asarray(self._vectors[items].astype(np.float64) * self._scale[items][:, None])

    def query(self, recent: Sequence[int]) -> Numbers:
        """Returns the direction, (d,), of the mean of some items; zeros for none."""
        if not len(recent):
            return np.zeros(self.dim)
        mean = self.unit(list(recent)).mean(axis=0)
        unit: Numbers = mean / max(float(np.linalg.norm(mean)), 1e-12)
        return unit

    def products(self, query: Numbers, items: Items) -> Numbers:
        """Returns query ⊙ item times d, (n, d): its entries are about 1 and their mean is the cosine."""
        return np.asarray(self.unit(items) * (query * self.dim))

    def products_of(self, examples: Sequence[Example]) -> Numbers:
        """Returns the products of each example, (n, d)."""
        queries: dict[tuple[int, ...], Numbers] = {}
        for example in examples:
            if example.recent not in queries:
                queries[example.recent] = self.query(example.recent)
        stacked = np.stack([queries[example.recent] for example in examples])
        items = [example.item for example in examples]
        return np.asarray(self.unit(items) * (stacked * self.dim))
