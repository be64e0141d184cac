"""Encoding a remembered user's history by its new items alone, beside what was computed of the others."""

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from recserve.engine.bundle import layout
from recserve.engine.bundle.histories import History
from recserve.engine.features import time_gaps
from recserve.engine.history_cache import HistoryCache
from recserve.engine.runtime import infer_all
from recserve.errors import BundleInvalid, BundleReason

# A shorter history, or one of less than half a window, costs less in a batch with others than to look for it.
MIN_LENGTH = 32
# The window of a long history begins in this share of the longest one.
STARTS = 1 / 3
# Fibonacci hashing: 2^32 over the golden ratio; products wrap.
HASH = np.int32(-1640531527)
OUTPUTS = (layout.QUERY_EMBEDDING_OUTPUT, layout.NEW_OUTPUT)


class IncrementalEncoder:
    """The second graph of an encoder, and what it computed before; safe to call from several threads."""

    def __init__(
        self,
        session: ort.InferenceSession,
        first: ort.InferenceSession,
        name: str,
        features: list[str],
        max_history: int,
        cache_bytes: int,
    ) -> None:
        """Raises :class:`BundleInvalid` for a graph ``name`` without the inputs that ``features`` ask for.

        ``first``: the same graph opened without ``layout.UNSAFE_OF_NOTHING``, for histories of which nothing
        is known.
        """
        self._session, self._first = session, first
        self._max_history, self._min_length = max_history, min(MIN_LENGTH, (max_history + 1) // 2)
        self._reads_gaps = layout.TIME_GAPS_INPUT in features
        self.cache = HistoryCache(cache_bytes, max_history)
        inputs = {node.name: node.shape for node in session.get_inputs()}
        outputs = {node.name for node in session.get_outputs()}
        self._past = [f"{layout.PAST_INPUT}{i}" for i in range(len(inputs) - len(features))]
        shapes = [inputs.get(name, []) for name in self._past]
        if (
            inputs.keys() != {*features, *self._past}
            or not outputs.issuperset(OUTPUTS)
            or not _are_past(shapes)
        ):
            raise BundleInvalid(
                f"inputs and outputs of {name}",
                found=f"{inputs}, {sorted(outputs)}",
                expected=f"{sorted(features)}, keys and values without a batch; {sorted(OUTPUTS)}",
                cure="Export the run again, or leave history_cache_mb out.",
                reason=BundleReason.GRAPH_SIGNATURE,
            )
        self._nothing = np.empty((len(shapes), 0, *shapes[0][1:]), np.float32)

    def serves(self, history: History) -> bool:
        """Whether it is worth while to encode ``history`` here."""
        return history.key is not None and len(history.items) >= self._min_length

    def encode(self, history: History, now: int) -> NDArray[np.float32]:
        """Returns the query embedding (1, embedding_size) of the newest items; ``now`` in seconds."""
        start = window_start(history.items, self._max_history)
        items = history.items[start:]
        timestamps = history.timestamps[start:] if self._reads_gaps else None
        found, n_known = self.cache.find(history.key, items, timestamps)
        known = self._nothing if found is None else found.past[:, :n_known]
        gaps = None if timestamps is None else time_gaps(timestamps, now)
        query, new = self.run(items, known, gaps)
        if timestamps is not None:
            # What the newest item gave holds until the next one comes: then it lies another time back.
            new = new[:, :-1]
        if new.shape[1]:
            self.cache.keep(history.key, found, n_known, items, timestamps, new)
        return query

    def run(
        self, items: NDArray[np.int32], past: NDArray[np.float32], time_gaps: NDArray[np.float32] | None
    ) -> list[NDArray[np.float32]]:
        """Encodes ``items`` (n,), of whose oldest ``past`` was computed; ``time_gaps`` (n,) of all.

        Returns the query embedding (1, embedding_size) and what was computed of the other items.
        """
        n_known = past.shape[1]
        inputs: dict[str, NDArray[np.generic]] = dict(zip(self._past, past, strict=True))
        inputs[layout.HISTORY_INPUT] = items[n_known:]
        if time_gaps is not None:
            inputs[layout.TIME_GAPS_INPUT] = time_gaps
        return infer_all(self._session if n_known else self._first, OUTPUTS, inputs)

    def encode_in_two(
        self, items: NDArray[np.int32], time_gaps: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        """Returns the query embedding of ``items`` by their first half, and then the others beside it."""
        n_first = (len(items) + 1) // 2
        gaps = None if time_gaps is None else time_gaps[:n_first]
        _, past = self.run(items[:n_first], self._nothing, gaps)
        return self.run(items, past[:, :-1], time_gaps)[0]


def _are_past(shapes: list[list[int | str]]) -> bool:
    """Whether these are declared shapes of keys and values: (any, n_heads, head size), all the same."""
    fixed = shapes[0][1:] if shapes else [0]
    is_known = all(isinstance(size, int) and size > 0 for size in fixed)
    return is_known and all(len(shape) == 3 and shape[1:] == fixed for shape in shapes)


def window_start(items: NDArray[np.int32], longest: int) -> int:
    """Returns where the window of a history begins: it holds the newest items, ``longest`` at most.

    A window that always held as many would begin elsewhere with every event. This one begins at the item with
    the smallest hash among the few that it may begin with (winnowing: Schleimer et al. 2003), so it mostly
    stays, whatever is forgotten before it, and the same history has the same window everywhere.
    """
    first = len(items) - longest
    if first <= 0:
        return 0
    hashes = items[first : first + max(1, int(longest * STARTS))] * HASH
    return first + int(hashes.argmin())
