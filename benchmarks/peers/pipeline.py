"""The two-stage pipeline as a good programmer writes it: ONNX Runtime, NumPy and Python, no engine.

What it does for each user id: the stored history; the bundle's encoder graph; MatMul and TopK over the
catalogue as one more graph, for so many more than 500 as the longest history may take out; the ranker as
torch exports it (plain_ranker.py), all users of a batch in one run, and its calibration; a greedy
determinantal point process by whole rows of NumPy (the algorithm of Chen, Zhang, Zhou, 2018); the three
nearest items of the history as explanation, with reasons; dictionaries as the answer. ONNX Runtime has the
options that the engine gives it. It checks no input, knows no rules, deadlines, warnings or stage times.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

from recserve.engine.bundle import Bundle, layout
from recserve.engine.bundle.ranker_entry import SIGMOID
from recserve.engine.config import EngineConfig
from recserve.engine.runtime import Runtime, session_options
from recserve.errors import InvalidRequest

N_NAMED, N_REASONS, MIN_SIMILARITY = 3, 2, 0.3
MAX_EXPLAINED, MAX_EVENTS = 50, 200
MIN_RESIDUAL = 1e-6

Answer = list[dict[str, Any]]


class Pipeline:
    """Answers user ids with slates of ``k`` out of ``n_candidates``; everything is loaded beforehand."""

    def __init__(self, bundle: Bundle, ranker: bytes, k: int, n_candidates: int, diversity: float) -> None:
        """``ranker``: a plain export of the bundle's.

        Raises :class:`InvalidRequest` for a bundle without what the pipeline is of.
        """
        entry, manifest = bundle.manifest.ranker, bundle.manifest
        if entry is None or entry.calibration["click"].method != SIGMOID:
            raise InvalidRequest("bundle", found=manifest.model, expected="one with a ranker scaled by Platt")
        self.k, self.n_candidates, self.diversity = k, n_candidates, diversity
        config = EngineConfig(provider="cpu")
        runtime = Runtime(bundle, config)
        # The session reads it as long as it lives.
        self.table = ort.OrtValue.ortvalue_from_numpy(np.asarray(bundle.item_embeddings))
        variant = manifest.variants[manifest.default_variant]
        self.encoder = runtime.open(variant.query_encoder, {layout.ITEM_EMBEDDINGS_INITIALIZER: self.table})
        options = session_options(config)
        self.ranker = ort.InferenceSession(ranker, options, providers=["CPUExecutionProvider"])
        self.top_k = _top_k(np.asarray(bundle.item_embeddings), options)
        self.max_history, self.ranker_history = manifest.inputs.max_history, entry.max_history
        [scale], [offset] = entry.calibration["click"].x, entry.calibration["click"].y
        self.scale, self.offset = scale, offset
        norms = np.linalg.norm(bundle.item_embeddings, axis=1, keepdims=True)
        self.unit = (bundle.item_embeddings / np.maximum(norms, 1e-30)).astype(np.float32)
        self.item_ids = bundle.catalogue.vocabulary.ids(range(manifest.n_items))
        self.is_new = bundle.popularity == 0
        users = list(bundle.histories.vocabulary)
        found = bundle.histories.get_many(users)
        self.histories = {user: one.items for user, one in zip(users, found, strict=True)}
        rows = bundle.array(entry.users, np.dtype(np.int64), (len(users), len(entry.user_features)))
        self.users = dict(zip(users, rows, strict=True))

    def answer(self, user_ids: Sequence[str], moment: Sequence[int]) -> list[Answer]:
        """Returns the slates of ``user_ids``; ``moment``: the features of the context, as indices."""
        histories = [self.histories[user] for user in user_ids]
        padded = _pad(histories, self.max_history).astype(np.int32)
        queries = self.encoder.run([layout.QUERY_EMBEDDING_OUTPUT], {layout.HISTORY_INPUT: padded})[0]
        # As many more as each may have seen.
        n = np.array([self.n_candidates + max(map(len, histories))], np.int64)
        found = self.top_k.run(None, {"queries": queries, "k": n})[1]
        candidates = np.stack(
            [
                items[~np.isin(items, history)][: self.n_candidates]
                for items, history in zip(found, histories, strict=True)
            ]
        )
        scores = self._predict(user_ids, histories, moment, candidates)
        answers = []
        for items, row, history in zip(candidates, scores, histories, strict=True):
            order = np.lexsort((items, -row))
            items, row = items[order], row[order]
            chosen = _dpp(row, self.unit[items], self.k, self.diversity)
            answers.append(self._explained(items[chosen], row[chosen], history))
        return answers

    def _predict(
        self,
        user_ids: Sequence[str],
        histories: Sequence[NDArray[np.int32]],
        moment: Sequence[int],
        candidates: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        inputs: Mapping[str, NDArray[Any]] = {
            layout.USER_INPUT: np.stack([self.users[user] for user in user_ids]),
            layout.CONTEXT_INPUT: np.tile(np.array(moment, np.int64), (len(user_ids), 1)),
            layout.CANDIDATES_INPUT: candidates,
            layout.HISTORY_INPUT: _pad(histories, self.ranker_history).astype(np.int64),
        }
        logits = self.ranker.run([layout.LOGITS_OUTPUT], inputs)[0][:, :, 0].astype(np.float64)
        clicks: NDArray[np.float32] = (1 / (1 + np.exp(-self.scale * logits - self.offset))).astype(
            np.float32
        )
        return clicks

    def _explained(
        self, items: NDArray[np.int64], scores: NDArray[np.float32], history: NDArray[np.int32]
    ) -> Answer:
        newest = list(dict.fromkeys(history[-min(self.max_history, MAX_EVENTS) :][::-1].tolist()))
        own = np.array(newest[:MAX_EXPLAINED])
        cosines = self.unit[items] @ self.unit[own].T
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :N_NAMED]
        values = np.take_along_axis(cosines, order, axis=1).tolist()
        answer = []
        for rank, (item, score, places, near) in enumerate(
            zip(items.tolist(), scores.tolist(), order.tolist(), values, strict=True), start=1
        ):
            names = [self.item_ids[newest[place]] for place in places]
            similar = [name for name, value in zip(names, near, strict=True) if value > MIN_SIMILARITY]
            reasons: list[dict[str, Any]] = [{"code": "NEW"}] if self.is_new[item] else []
            if similar:
                reasons.append({"code": "SIMILAR_TO", "item_ids": similar[:N_REASONS]})
            parts = [{"item_id": name, "value": value} for name, value in zip(names, near, strict=True)]
            explanation = {
                "reasons": reasons or [{"code": "FOR_YOU"}],
                "contributions": parts,
                "method": "similarity",
                "base": score,
            }
            answer.append(
                {
                    "rank": rank,
                    "item_id": self.item_ids[item],
                    "score": score,
                    "explanation": explanation,
                }
            )
        return answer


def _dpp(
    scores: NDArray[np.float32], unit: NDArray[np.float32], k: int, diversity: float
) -> NDArray[np.int64]:
    """Returns the places (k,) that greedy choice takes; ``unit``: (n, d) directions of the candidates."""
    relevance = (1 - diversity) * (scores - scores.min()) / max(float(np.ptp(scores)), 1e-12)
    factor = np.empty((k, len(scores)))
    residuals, chosen = np.ones(len(scores)), np.empty(k, np.int64)
    free = np.ones(len(scores), np.bool_)
    for place in range(k):
        gains = np.where(
            free & (residuals > MIN_RESIDUAL),
            relevance + diversity * np.log(np.maximum(residuals, MIN_RESIDUAL)),
            -np.inf,
        )
        best = chosen[place] = int(np.argmax(gains))
        free[best] = False
        row = unit @ unit[best] - factor[:place, best] @ factor[:place]
        factor[place] = row / np.sqrt(residuals[best])
        residuals -= factor[place] ** 2
    return chosen


def _pad(histories: Sequence[NDArray[np.int32]], max_history: int) -> NDArray[np.int32]:
    newest = [history[-max_history:] for history in histories]
    padded = np.full((len(newest), max(map(len, newest))), -1, np.int32)
    for row, history in zip(padded, newest, strict=True):
        row[len(row) - len(history) :] = history
    return padded


def _top_k(vectors: NDArray[np.float32], options: ort.SessionOptions) -> ort.InferenceSession:
    """Returns MatMul and TopK over ``vectors`` (n_items, d) as a session of queries and k."""
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["queries", "items"], ["scores"]),
            helper.make_node("TopK", ["scores", "k"], ["top_scores", "top_items"], axis=1),
        ],
        "top_k",
        [
            helper.make_tensor_value_info("queries", TensorProto.FLOAT, ["batch", vectors.shape[1]]),
            helper.make_tensor_value_info("k", TensorProto.INT64, [1]),
        ],
        [
            helper.make_tensor_value_info("top_scores", TensorProto.FLOAT, ["batch", "n"]),
            helper.make_tensor_value_info("top_items", TensorProto.INT64, ["batch", "n"]),
        ],
        [onnx.numpy_helper.from_array(np.ascontiguousarray(vectors.T), "items")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
