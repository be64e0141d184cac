"""The ranker of a bundle: users, the moment and candidates → predictions, through ONNX Runtime."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from recserve.engine.bundle import Bundle, layout
from recserve.engine.bundle.histories import History
from recserve.engine.bundle.ranker_entry import ISOTONIC, LINEAR, CalibrationEntry, RankerEntry
from recserve.engine.bundle.request_features import ID
from recserve.engine.feature_reader import FeatureReader
from recserve.engine.features import pad_histories, pad_values
from recserve.engine.golden import check_golden, read_golden, repeated
from recserve.engine.runtime import Runtime, infer
from recserve.errors import BundleInvalid, BundleReason

# Users times candidates that go through the graph at once: what its layers write stays in the second-level
# cache, which takes two thirds of the time of 16,000 pairs in one call.
MAX_PAIRS = 4096


class Ranker:
    """Scores candidates of many users at once; safe to call from several threads.

    Raises :class:`BundleInvalid` at construction when graph, users or vocabularies are not what the manifest
    says, or the graph does not reproduce the recorded outputs.
    """

    def __init__(self, bundle: Bundle, entry: RankerEntry, runtime: Runtime) -> None:
        self.entry = entry
        self.targets = tuple(entry.targets)
        self._users = _open_users(bundle, entry)
        self._user = FeatureReader(bundle, entry.user_features)
        self._context = FeatureReader(bundle, entry.context_features)
        self._row_of = bundle.histories.vocabulary.index_of
        self._session = runtime.open(entry.graph)
        self._inputs = [node.name for node in self._session.get_inputs()]
        self._check_signature()
        self._check_golden(bundle.read(entry.golden), bundle.manifest.n_items)

    def user(self, user_id: str, context: Mapping[str, str]) -> NDArray[np.int64]:
        """Returns the user's features, (n_user_features,); ``context`` says more of them, or of a new user.

        Raises :class:`InvalidRequest` for a number that is none.
        """
        row = self._row_of(user_id) if user_id else -1
        indices = self._users[row].copy() if row >= 0 else np.zeros(len(self.entry.user_features), np.int64)
        for i, feature in enumerate(self.entry.user_features):
            if feature.kind != ID and feature.name in context:
                indices[i] = self._user.index(feature, context[feature.name])
        return indices

    def context(self, context: Mapping[str, str], now: int) -> NDArray[np.int64]:
        """Returns the features of the moment, (n_context_features,), by ``context``, else by the UTC clock.

        ``now``: seconds since the epoch. Raises :class:`InvalidRequest` for an hour that is none.
        """
        return np.array(self._context.indices(context, now), np.int64)

    def predict(
        self,
        users: NDArray[np.int64],
        contexts: NDArray[np.int64],
        histories: Sequence[History],
        candidates: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """Returns calibrated predictions (batch, n_candidates, n_targets).

        ``users``, ``contexts``: rows of :meth:`user` and :meth:`context`; ``candidates``: item indices,
        (batch, n_candidates). A row alone and in any batch has the same predictions, but for the last bits.
        """
        step = max(1, MAX_PAIRS // max(1, candidates.shape[1]))
        parts = []
        for start in range(0, len(candidates), step):
            rows = slice(start, start + step)
            parts.append(
                self._run(
                    {
                        **self._of_histories(histories[rows]),
                        layout.USER_INPUT: users[rows],
                        layout.CONTEXT_INPUT: contexts[rows],
                        layout.CANDIDATES_INPUT: candidates[rows],
                    }
                )
            )
        logits = (parts[0] if len(parts) == 1 else np.concatenate(parts)).astype(np.float64)
        predictions = np.empty_like(logits)
        for i, name in enumerate(self.targets):
            predictions[:, :, i] = calibrated(self.entry.calibration[name], logits[:, :, i])
        return predictions

    def _run(self, inputs: dict[str, NDArray[np.generic]]) -> NDArray[np.float32]:
        given = {name: inputs[name] for name in self._inputs}
        return infer(self._session, layout.LOGITS_OUTPUT, given)

    def _of_histories(self, histories: Sequence[History]) -> dict[str, NDArray[np.generic]]:
        if not self.entry.max_history:
            return {}
        padded = pad_histories([history.items for history in histories], self.entry.max_history)
        if not padded.shape[1]:
            # The graph has no form for a history of no length at all.
            padded = np.full((len(histories), 1), -1, np.int32)
        inputs: dict[str, NDArray[np.generic]] = {layout.HISTORY_INPUT: padded.astype(np.int64)}
        if layout.HISTORY_VALUES_INPUT in self._inputs:
            inputs[layout.HISTORY_VALUES_INPUT] = pad_values(histories, padded.shape[1])
        return inputs

    def _check_signature(self) -> None:
        expected = {layout.USER_INPUT, layout.CANDIDATES_INPUT}
        expected |= {layout.HISTORY_INPUT} if self.entry.max_history else set()
        expected |= {layout.CONTEXT_INPUT} if self.entry.context_features else set()
        # What the history's items were rated is read by rankers that learned from ratings.
        may_be = expected | ({layout.HISTORY_VALUES_INPUT} if self.entry.max_history else set())
        if not expected <= set(self._inputs) <= may_be:
            raise BundleInvalid(
                f"inputs of {self.entry.graph}",
                found=sorted(self._inputs),
                expected=str(sorted(expected)),
                reason=BundleReason.GRAPH_SIGNATURE,
            )
        outputs = [node.name for node in self._session.get_outputs()]
        if outputs != [layout.LOGITS_OUTPUT]:
            raise BundleInvalid(
                f"outputs of {self.entry.graph}",
                found=outputs,
                expected=layout.LOGITS_OUTPUT,
                reason=BundleReason.GRAPH_SIGNATURE,
            )

    def _check_golden(self, data: bytes, n_items: int) -> None:
        name = self.entry.golden
        recorded = read_golden(data, name, [*self._inputs, layout.LOGITS_OUTPUT])
        expected = recorded.pop(layout.LOGITS_OUTPUT)
        candidates = recorded[layout.CANDIDATES_INPUT]
        if candidates.ndim != 2 or not candidates.size:
            raise BundleInvalid(
                f"candidates of {name}",
                found=candidates.shape,
                expected="a table of items",
                reason=BundleReason.GOLDEN_MALFORMED,
            )
        with repeated(name):
            found = self._run(recorded)
            # The first and the last item of the catalogue: the graph's tables may be shorter than it.
            ends = {**recorded, layout.CANDIDATES_INPUT: np.full_like(candidates, n_items - 1)}
            last = self._run(ends)
        shape = (*candidates.shape, len(self.targets))
        check_golden(name, found, expected, shape, self.entry.golden_tolerance)
        if not np.isfinite(last).all():
            raise BundleInvalid(
                f"output of {self.entry.graph}",
                found="not finite",
                expected="numbers",
                reason=BundleReason.GRAPH_OUTPUT,
            )


def calibrated(entry: CalibrationEntry, logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns what ``logits`` mean, in their shape; see :class:`CalibrationEntry`."""
    if entry.method == ISOTONIC:
        return np.interp(logits, entry.x, entry.y)
    values = entry.x[0] * logits + entry.y[0]
    if entry.method == LINEAR:
        return np.clip(values, entry.low, entry.high)
    # σ by tanh: no overflow.
    return 0.5 * (1 + np.tanh(0.5 * values))


def _open_users(bundle: Bundle, entry: RankerEntry) -> NDArray[np.int64]:
    shape = (len(bundle.histories), len(entry.user_features))
    users = bundle.array(entry.users, np.dtype(np.int64), shape)
    if users.size and users.min() < 0:
        raise BundleInvalid(
            entry.users,
            found=int(users.min()),
            expected="indices of 0 or more",
            reason=BundleReason.VALUE_RANGE,
        )
    return users
