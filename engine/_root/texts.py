"""Texts as vectors by a graph and its tokenizer: training and serving read an item's texts alike."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recserve.words import unit_rows

# What becomes of the vectors of a text's pieces; "none": the graph returns the text's vector.
POOLINGS = ("mean", "cls", "none")
TEXTS_PER_STEP = 32


class GraphEncoder:
    """Pieces of texts through a graph, and their vectors as one of each text."""

    def __init__(
        self,
        tokenizer: Any,
        run: Callable[[Mapping[str, NDArray[np.int64]]], NDArray[Any]],
        inputs: Sequence[str],
        *,
        pooling: str,
        max_length: int,
        prefix: str = "",
    ) -> None:
        """``tokenizer``: of the package tokenizers, this encoder's own; ``run``: the graph's first output.

        ``inputs``: what the graph reads of input_ids, attention_mask and token_type_ids; ``max_length``:
        pieces of a text that are read; ``prefix``: what stands before every text.
        """
        self._tokenizer, self._run, self._inputs = tokenizer, run, inputs
        self._pooling, self._prefix = pooling, prefix
        tokenizer.enable_truncation(max_length)
        tokenizer.enable_padding()

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Returns one vector per text, (n, d) float32, of length 1, or 0 for a text without a word; n ≥ 1."""
        # Texts of like length are computed together: what is padded costs as much as what is not.
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        steps = [order[start : start + TEXTS_PER_STEP] for start in range(0, len(order), TEXTS_PER_STEP)]
        parts = [self._encode([texts[row] for row in rows]) for rows in steps]
        vectors = np.empty((len(texts), parts[0].shape[1]), np.float32)
        vectors[order] = np.concatenate(parts)
        vectors[[not text.strip() for text in texts]] = 0
        return unit_rows(vectors)

    def _encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        encoded = self._tokenizer.encode_batch([self._prefix + text for text in texts])
        arrays = {
            "input_ids": np.array([one.ids for one in encoded], np.int64),
            "attention_mask": np.array([one.attention_mask for one in encoded], np.int64),
            "token_type_ids": np.array([one.type_ids for one in encoded], np.int64),
        }
        pieces = self._run({name: arrays[name] for name in self._inputs})
        if self._pooling == "none":
            return np.asarray(pieces, np.float32)
        if self._pooling == "cls":
            return np.asarray(pieces[:, 0], np.float32)
        mask = arrays["attention_mask"][:, :, None].astype(np.float32)
        return np.asarray((pieces * mask).sum(1) / np.maximum(mask.sum(1), 1), np.float32)
