"""What a program does that serves the same encoder without this project: ONNX Runtime, then NumPy.

Used by the servers of ``bench peers`` beside it, in environments that have nothing of recserve.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort


class TopList:
    """The encoder of one bundle and the best items of its whole catalogue, seen ones left out."""

    def __init__(self, folder: str) -> None:
        """``folder``: what ``bench peers`` wrote (settings.json, known.npz)."""
        settings = json.loads(Path(folder, "settings.json").read_text(encoding="utf-8"))
        known = np.load(Path(folder, "known.npz"), allow_pickle=False)
        self._items = np.load(settings["item_embeddings"])
        self._item_ids = known["item_ids"].tolist()
        self._row_of = {user: row for row, user in enumerate(known["user_ids"].tolist())}
        self._indptr, self._history = known["indptr"], known["items"]
        self._max_history = settings["max_history"]
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry(settings["external_folder_option"], settings["bundle"])
        self._parts = {
            name: ort.OrtValue.ortvalue_from_numpy(np.load(file))
            for name, file in settings["initializers"].items()
        }
        for name, part in self._parts.items():
            options.add_initializer(name, part)
        self._session = ort.InferenceSession(settings["graph"], options, providers=["CPUExecutionProvider"])
        self._input, self._output = settings["input"], settings["output"]

    def answer(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Answers a batch of ``user_id`` (one that the bundle knows) and ``k`` with ``items``, best first."""
        seen = [self._seen(request["user_id"]) for request in requests]
        newest = [items[-self._max_history :] for items in seen]
        padded = np.full((len(seen), max(map(len, newest))), -1, np.int32)
        for row, items in zip(padded, newest, strict=True):
            row[len(row) - len(items) :] = items
        [queries] = self._session.run([self._output], {self._input: padded})
        scores = queries @ self._items.T
        answers = []
        for row, items, request in zip(scores, seen, requests, strict=True):
            row[items] = -np.inf
            k = int(request["k"])
            best = np.argpartition(-row, k)[:k]
            best = best[np.argsort(-row[best])]
            answers.append(
                {
                    "items": [
                        {"itemId": self._item_ids[item], "score": float(row[item]), "rank": rank}
                        for rank, item in enumerate(best.tolist(), start=1)
                    ]
                }
            )
        return answers

    def _seen(self, user_id: str) -> Any:
        row = self._row_of[user_id]
        return self._history[self._indptr[row] : self._indptr[row + 1]]
