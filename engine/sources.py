"""Where query embeddings come from: an encoder that reads the history, or a table of users."""

from collections.abc import Hashable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from recserve.engine.bundle import Bundle
from recserve.engine.bundle.histories import History
from recserve.engine.bundle.manifest import TABLE
from recserve.engine.runtime import Runtime
from recserve.engine.session import QueryEncoder
from recserve.engine.user_table import UserTable


class QuerySource(Protocol):
    """Histories → query embeddings, for one variant of one bundle; safe to call from several threads."""

    def answers(self, history: History) -> bool:
        """Whether the model has an embedding for ``history``; the others are cold starts."""
        ...

    def encode(self, histories: Sequence[History], now: int) -> NDArray[np.float32]:
        """Returns (batch, embedding_size) of histories that it answers; ``now`` in seconds since the epoch.

        A history alone and in any batch has the same embedding, but for the last bits.
        """
        ...

    def shares(
        self, history: History, items: NDArray[np.int32], n: int
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]] | None:
        """Returns the ``n`` items of the history, or fewer, that add most to the score of each of ``items``.

        Items and shares are (n_items, n), the largest first. All shares of a score sum to it; None where it
        is no such sum.
        """
        ...

    def stats(self) -> dict[str, int]:
        """Returns counts since the load."""
        ...

    def forget(self, key: Hashable) -> None:
        """Drops what it keeps of a user for good; None: of all users, who may come again."""
        ...


def open_source(bundle: Bundle, variant: str, runtime: Runtime, history_cache_bytes: int = 0) -> QuerySource:
    """Returns the source of ``variant``; raises :class:`BundleInvalid` when it is not what was recorded.

    ``history_cache_bytes``: what an encoder may keep of histories that it has encoded.
    """
    if bundle.manifest.variants[variant].query == TABLE:
        return UserTable(bundle, variant)
    return QueryEncoder(bundle, variant, runtime, history_cache_bytes)
