"""Query embeddings of models that learned a vector per user: looked up, or folded in from a history."""

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from recserve.engine.bundle import Bundle, layout
from recserve.engine.bundle.histories import History
from recserve.engine.bundle.manifest import FoldIn
from recserve.engine.golden import check_golden, read_golden
from recserve.errors import BundleInvalid, BundleReason, InvalidRequest
from recserve.kernels import count_repeats, fold_in, fold_in_shares, gram_matrix


class UserTable:
    """The user table of a bundle; safe to call from several threads.

    A user whose history is still the bundle's has a row. A history that a request brought, that grew since
    or that belongs to nobody is folded in: the vector that alternating least squares would give it. Where
    the bundle has no fold-in, such a history is a cold start.
    """

    def __init__(self, bundle: Bundle, variant: str) -> None:
        """Raises :class:`BundleInvalid` unless the recorded embeddings come out again."""
        entry, inputs = bundle.manifest.variants[variant], bundle.manifest.inputs
        if bundle.user_embeddings is None:
            raise BundleInvalid(
                f"variant {variant}",
                found="without a user table",
                expected="one",
                reason=BundleReason.MANIFEST_FIELD,
            )
        if inputs.features != [layout.HISTORY_INPUT]:
            raise BundleInvalid(
                "features",
                found=inputs.features,
                expected="history alone for a table",
                reason=BundleReason.MANIFEST_FIELD,
            )
        self._rows = bundle.user_embeddings
        self._folder = None
        if entry.fold_in is not None:
            self._folder = Folder(bundle.item_embeddings, inputs.max_history, entry.fold_in)
        self._check_golden(bundle.read(entry.golden), entry.golden)

    def answers(self, history: History) -> bool:
        """Whether there is a row for ``history``, or something to fold in."""
        return len(history.items) > 0 and (history.user_row >= 0 or self._folder is not None)

    def encode(self, histories: Sequence[History], now: int) -> NDArray[np.float32]:
        """Returns the rows of the users in the table and the fold-in of the others, (batch, d) float32."""
        rows = [history.user_row for history in histories]
        new = [i for i, row in enumerate(rows) if row < 0]
        if not new or self._folder is None:
            return self._rows.take(rows, axis=0)
        queries = np.empty((len(rows), self._rows.shape[1]), np.float32)
        known = [i for i, row in enumerate(rows) if row >= 0]
        queries[known] = self._rows[[rows[i] for i in known]]
        queries[new] = self._folder.fold([histories[i].items for i in new])
        return queries

    def shares(
        self, history: History, items: NDArray[np.int32], n: int
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]] | None:
        """Returns the shares of a fold-in; that of a row equals it where the rows were learned so (ALS)."""
        return None if self._folder is None else self._folder.shares(history.items, items, n)

    def stats(self) -> dict[str, int]:
        """Returns nothing: a table has no padding to count."""
        return {}

    def forget(self, key: Hashable) -> None:
        """Has nothing to drop: rows are the bundle's."""

    def _check_golden(self, data: bytes, name: str) -> None:
        recorded = read_golden(data, name, [layout.USER_ROW_RECORD, layout.USER_EMBEDDING_RECORD])
        rows, expected = recorded[layout.USER_ROW_RECORD], recorded[layout.USER_EMBEDDING_RECORD]
        n_users, size = self._rows.shape
        if rows.ndim != 1 or rows.dtype.kind != "i" or np.any((rows < 0) | (rows >= n_users)):
            raise BundleInvalid(
                f"user rows of {name}",
                found="out of range",
                expected=f"0 to {n_users - 1}",
                reason=BundleReason.GOLDEN_MALFORMED,
            )
        check_golden(name, self._rows[rows], expected, (len(rows), size))
        if self._folder is not None:
            self._folder.check_golden(data, name)


class Folder:
    """Folds histories into one catalogue, ``items`` (n_items, d) float32."""

    def __init__(self, items: NDArray[np.float32], max_history: int, parameters: FoldIn) -> None:
        self._items = items
        self._max_history = max_history
        self._parameters = parameters
        # A pass over the whole catalogue: once, not in every request.
        self._gram = gram_matrix(self._items)

    def fold(self, histories: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        """Returns (n, d) float32 for the newest items of each history, newest last."""
        newest = [history[-self._max_history :] for history in histories]
        indptr = np.zeros(len(newest) + 1, np.int64)
        np.cumsum([len(history) for history in newest], out=indptr[1:])
        interactions, counts = count_repeats((indptr, np.concatenate(newest)))
        return fold_in(
            self._items,
            interactions,
            counts * np.float32(self._parameters.weight),
            self._parameters.reg,
            reg_exponent=self._parameters.reg_exponent,
            gram=self._gram,
        )

    def fold_padded(self, histories: NDArray[np.int32]) -> NDArray[np.float32]:
        """Does what :meth:`fold` does for rows that are padded with −1."""
        return self.fold([row[row >= 0] for row in histories])

    def shares(
        self, history: NDArray[np.int32], items: NDArray[np.int32], n: int
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Returns which items of the history add most to the scores of ``items``, and how much."""
        return fold_in_shares(
            self._items,
            history[-self._max_history :],
            self._parameters.weight,
            items,
            n,
            self._parameters.reg,
            reg_exponent=self._parameters.reg_exponent,
            gram=self._gram,
        )

    def check_golden(self, data: bytes, name: str) -> None:
        """Raises :class:`BundleInvalid` unless the recorded histories have the recorded embeddings."""
        recorded = read_golden(data, name, [layout.HISTORY_INPUT, layout.QUERY_EMBEDDING_OUTPUT])
        padded = recorded[layout.HISTORY_INPUT]
        if padded.ndim != 2 or padded.dtype != np.int32 or len(padded) == 0:
            raise BundleInvalid(
                f"history of {name}",
                found=padded.shape,
                expected="int32, at least one row",
                reason=BundleReason.GOLDEN_MALFORMED,
            )
        try:
            found = self.fold_padded(padded)
        except InvalidRequest as error:
            raise BundleInvalid(
                name,
                found="a fold-in that fails",
                expected="the recorded one",
                reason=BundleReason.GRAPH_FAILS,
            ) from error
        expected = recorded[layout.QUERY_EMBEDDING_OUTPUT]
        check_golden(name, found, expected, (len(padded), self._items.shape[1]))
