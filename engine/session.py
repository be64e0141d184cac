"""The query encoder of one variant: its graph, checked and run."""

import threading
from collections.abc import Hashable, Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from recserve.engine.buckets import length_groups, measure_call
from recserve.engine.bundle import Bundle, layout
from recserve.engine.bundle.histories import History
from recserve.engine.bundle.manifest import VariantEntry
from recserve.engine.features import newest_items, pad_histories, pad_time_gaps
from recserve.engine.golden import check_golden, read_golden, repeated
from recserve.engine.incremental import IncrementalEncoder
from recserve.engine.runtime import Runtime, infer
from recserve.errors import BundleInvalid, BundleReason
from recserve.kernels import pad_lists

FIRST_ROW = np.zeros(1, np.int64)


class QueryEncoder:
    """History → query embedding, for one variant of one bundle; safe to call from several threads.

    Raises :class:`BundleInvalid` at construction when the graph does not load, does not have the
    declared inputs and outputs, or does not reproduce the recorded outputs.
    """

    def __init__(self, bundle: Bundle, variant: str, runtime: Runtime, history_cache_bytes: int = 0) -> None:
        """``history_cache_bytes``: what is kept of the histories of remembered users, if the bundle can."""
        entry = bundle.manifest.variants[variant]
        self.name = f"variant {variant}"
        self.features = bundle.manifest.inputs.features
        self.max_history = bundle.manifest.inputs.max_history
        self.embedding_size = bundle.manifest.embedding_size
        # Guards the two counters.
        self._counting = threading.Lock()
        self._positions = self._padding = 0
        # The graph's item table is the bundle's memory map: one copy for all variants and processes.
        self._table = {
            name: ort.OrtValue.ortvalue_from_numpy(np.asarray(part))
            for name, part in bundle.item_parts.items()
        }
        self._session = runtime.open(entry.query_encoder, self._table)
        self._check_signature(entry.query_encoder)
        self._check_golden(bundle.read(entry.golden), entry.golden, entry.golden_tolerance)
        self._check_full_length(self.max_history, entry.query_encoder)
        self._call_positions = measure_call(self._encode_first, self.max_history)
        self._positions = self._padding = 0
        self._incremental: IncrementalEncoder | None = None
        if history_cache_bytes and entry.incremental_encoder:
            self._incremental = self._open_incremental(bundle, entry, runtime, history_cache_bytes)

    def answers(self, history: History) -> bool:
        """Whether there is something to encode."""
        return len(history.items) > 0

    def encode(self, histories: Sequence[History], now: int) -> NDArray[np.float32]:
        """Encodes the newest items of each history; ``now`` in seconds since the epoch.

        Histories of about the same length go through the graph together (buckets.py), but those of which
        something may be kept (incremental.py).
        """
        if self._incremental is not None:
            return self._encode_remembered(self._incremental, histories, now)
        return self._encode_all(histories, now)

    def _encode_remembered(
        self, incremental: IncrementalEncoder, histories: Sequence[History], now: int
    ) -> NDArray[np.float32]:
        if len(histories) == 1 and incremental.serves(histories[0]):
            return incremental.encode(histories[0], now)
        queries = np.empty((len(histories), self.embedding_size), np.float32)
        others = []
        for row, history in enumerate(histories):
            if incremental.serves(history):
                queries[row] = incremental.encode(history, now)
            else:
                others.append(row)
        if others:
            queries[others] = self._encode_all([histories[row] for row in others], now)
        return queries

    def _encode_all(self, histories: Sequence[History], now: int) -> NDArray[np.float32]:
        if len(histories) == 1:
            padded = pad_histories([histories[0].items], self.max_history)
            return self._encode_padded(padded, histories, now)
        items = [history.items for history in histories]
        values, ends, lengths = newest_items(items, self.max_history)
        queries = np.empty((len(histories), self.embedding_size), np.float32)
        for rows in length_groups(lengths, self._call_positions):
            padded = pad_lists(values, ends, rows, int(lengths[rows[0]]))
            queries[rows] = self._encode_padded(padded, histories, now, rows)
        return queries

    def _encode_first(self, length: int) -> NDArray[np.float32]:
        """Encodes a history of ``length`` times the first item."""
        return self._encode_all([History(np.zeros(length, np.int32), np.zeros(length, np.int64))], 0)

    def shares(self, history: History, items: NDArray[np.int32], n: int) -> None:
        """Returns None: what a network reads is no sum over the items."""

    def _encode_padded(
        self,
        padded: NDArray[np.int32],
        histories: Sequence[History],
        now: int,
        rows: NDArray[np.int64] = FIRST_ROW,
    ) -> NDArray[np.float32]:
        """Encodes ``padded`` (m, length), which has the items of those of ``histories`` that are ``rows``."""
        n_padding = int(np.count_nonzero(padded < 0)) if len(padded) > 1 else 0
        with self._counting:
            self._positions += padded.size
            self._padding += n_padding
        gaps = None
        if layout.TIME_GAPS_INPUT in self.features:
            gaps = pad_time_gaps([histories[row].timestamps for row in rows], padded.shape[1], now)
        return self.run(padded, gaps)

    def stats(self) -> dict[str, int]:
        """Returns the positions (rows × length) encoded since the load, and how many of them were padding.

        Those of remembered users are in neither: they are hits and misses of the cache.
        """
        with self._counting:
            counts = {"encoded_positions": self._positions, "padding_positions": self._padding}
        return counts if self._incremental is None else counts | self._incremental.cache.stats()

    @property
    def kept_bytes(self) -> int:
        """What is kept of remembered users, in memory."""
        return 0 if self._incremental is None else self._incremental.cache.n_bytes

    def forget(self, key: Hashable) -> None:
        """Drops what is kept of a user's history for good; None: of all users', for now."""
        if self._incremental is not None:
            self._incremental.cache.forget(key)

    def run(
        self, history: NDArray[np.int32], time_gaps: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Encodes ``history`` (batch, length) int32, left-padded with −1, to (batch, embedding_size).

        ``time_gaps`` (batch, length) float32: seconds from each item to the next one, the newest to now;
        needed exactly when the bundle's ``features`` name it.
        """
        inputs: dict[str, NDArray[np.generic]] = {layout.HISTORY_INPUT: history}
        if time_gaps is not None:
            inputs[layout.TIME_GAPS_INPUT] = time_gaps
        return infer(self._session, layout.QUERY_EMBEDDING_OUTPUT, inputs)

    def _check_signature(self, graph: str) -> None:
        inputs = {node.name for node in self._session.get_inputs()}
        outputs = {node.name for node in self._session.get_outputs()}
        known = {layout.HISTORY_INPUT, layout.TIME_GAPS_INPUT}
        if not {layout.HISTORY_INPUT} <= set(self.features) <= known:
            raise BundleInvalid(
                "features",
                found=self.features,
                expected=f"history, or {sorted(known)}",
                reason=BundleReason.MANIFEST_FIELD,
            )
        if inputs != set(self.features):
            raise BundleInvalid(
                f"inputs of {graph}",
                found=sorted(inputs),
                expected=str(sorted(self.features)),
                reason=BundleReason.GRAPH_SIGNATURE,
            )
        if layout.QUERY_EMBEDDING_OUTPUT not in outputs:
            raise BundleInvalid(
                f"outputs of {graph}",
                found=sorted(outputs),
                expected=layout.QUERY_EMBEDDING_OUTPUT,
                reason=BundleReason.GRAPH_SIGNATURE,
            )

    def _check_golden(self, data: bytes, name: str, tolerance: float) -> None:
        recorded = read_golden(data, name, [*self.features, layout.QUERY_EMBEDDING_OUTPUT])
        expected = recorded.pop(layout.QUERY_EMBEDDING_OUTPUT)
        shape = (len(recorded[layout.HISTORY_INPUT]), self.embedding_size)
        if shape[0] == 0:
            raise BundleInvalid(
                f"history of {name}",
                found="empty",
                expected="at least one row",
                reason=BundleReason.GOLDEN_MALFORMED,
            )
        with repeated(name):
            found = self.run(**recorded)
        check_golden(name, found, expected, shape, tolerance)

    def _open_incremental(
        self, bundle: Bundle, entry: VariantEntry, runtime: Runtime, cache_bytes: int
    ) -> IncrementalEncoder:
        """Opens the second graph and has it repeat, in two steps, what was recorded of the first."""
        name = entry.incremental_encoder
        session, first = (
            runtime.open(name, self._table, keeps_memory=True, without=without)
            for without in ((), layout.UNSAFE_OF_NOTHING)
        )
        encoder = IncrementalEncoder(session, first, name, self.features, self.max_history, cache_bytes)
        recorded = read_golden(
            bundle.read(entry.golden), entry.golden, [*self.features, layout.QUERY_EMBEDDING_OUTPUT]
        )
        for row, (history, expected) in enumerate(
            zip(recorded[layout.HISTORY_INPUT], recorded[layout.QUERY_EMBEDDING_OUTPUT], strict=True)
        ):
            items = history[history >= 0]
            if not len(items):
                continue
            gaps = recorded.get(layout.TIME_GAPS_INPUT)
            with repeated(name):
                found = encoder.encode_in_two(items, None if gaps is None else gaps[row, history >= 0])
            check_golden(name, found, expected[None], (1, self.embedding_size), entry.golden_tolerance)
        return encoder

    def _check_full_length(self, max_history: int, graph: str) -> None:
        """Runs one history of the declared length: recorded ones may all be shorter."""
        history = np.zeros((1, max_history), np.int32)
        gaps = np.zeros(history.shape, np.float32) if layout.TIME_GAPS_INPUT in self.features else None
        try:
            found = self.run(history, gaps)
        except Exception as error:
            raise BundleInvalid(
                f"max_history of {graph}",
                found=max_history,
                expected="a length that the graph takes",
                reason=BundleReason.GRAPH_FAILS,
            ) from error
        if found.shape != (1, self.embedding_size) or not np.isfinite(found).all():
            raise BundleInvalid(
                f"output of {graph}",
                found="not finite",
                expected="one finite embedding",
                reason=BundleReason.GRAPH_OUTPUT,
            )
