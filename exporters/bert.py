"""A BERT encoder of safetensors as an ONNX graph: for model folders that have no graph of their own.

Devlin et al. 2019 (arXiv:1810.04805), the layout of Hugging Face's ``BertModel``.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from recserve.errors import DataError
from recserve.exporters.text_graph import write_text_graph

WEIGHTS, CONFIG = "model.safetensors", "config.json"
NUMBERS = ("num_hidden_layers", "num_attention_heads", "layer_norm_eps", "max_position_embeddings")
EMBEDDINGS, LAYER = "embeddings", "encoder.layer.{}"


class Bert(nn.Module):
    """Pieces of texts → their vectors; the weights keep the names that they have in the file."""

    def __init__(self, config: dict[str, Any], weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.n_layers, self.n_heads = int(config["num_hidden_layers"]), int(config["num_attention_heads"])
        self.eps = float(config["layer_norm_eps"])
        self.weights = nn.ParameterDict(
            {
                name.replace(".", "/"): nn.Parameter(value)
                for name, value in weights.items()
                if value.is_floating_point()
            }
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """All (batch, length) int64; returns (batch, length, size)."""
        positions = torch.arange(input_ids.shape[1])
        x = (
            F.embedding(input_ids, self._weight(f"{EMBEDDINGS}.word_embeddings.weight"))
            + F.embedding(token_type_ids, self._weight(f"{EMBEDDINGS}.token_type_embeddings.weight"))
            + F.embedding(positions, self._weight(f"{EMBEDDINGS}.position_embeddings.weight"))
        )
        x = self._norm(x, f"{EMBEDDINGS}.LayerNorm")
        bias = torch.where(attention_mask > 0, 0.0, -1e4)[:, None, None, :]
        for place in range(self.n_layers):
            layer = LAYER.format(place)
            attended = self._linear(self._attend(x, bias, layer), f"{layer}.attention.output.dense")
            x = self._norm(x + attended, f"{layer}.attention.output.LayerNorm")
            wide = F.gelu(self._linear(x, f"{layer}.intermediate.dense"))
            x = self._norm(x + self._linear(wide, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
        return x

    def _attend(self, x: Tensor, bias: Tensor, layer: str) -> Tensor:
        batch, length, size = x.shape
        query, key, value = (
            self._linear(x, f"{layer}.attention.self.{name}")
            .view(batch, length, self.n_heads, size // self.n_heads)
            .transpose(1, 2)
            for name in ("query", "key", "value")
        )
        logits = query @ key.transpose(-1, -2) / math.sqrt(size // self.n_heads) + bias
        return (torch.softmax(logits, -1) @ value).transpose(1, 2).reshape(batch, length, size)

    def _weight(self, name: str) -> Tensor:
        weight: Tensor = self.weights[name.replace(".", "/")]
        return weight

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self._weight(f"{name}.weight"), self._weight(f"{name}.bias"))

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self._weight(f"{name}.weight"), self._weight(f"{name}.bias")
        return F.layer_norm(x, weight.shape, weight, bias, self.eps)


def export_bert(folder: Path, graph: Path) -> None:
    """Writes the graph of the BERT model in ``folder``; raises :class:`DataError` for another kind."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    expected = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}
    for name, value in expected.items():
        if config.get(name, value) != value:
            raise DataError(f"{name} of {folder}", found=config[name], expected=value)
    if missing := [name for name in NUMBERS if name not in config]:
        raise DataError(
            f"{CONFIG} of {folder}", found=f"without {', '.join(missing)}", expected="BERT's settings"
        )
    # A model of another task has the encoder under this name.
    weights = {name.removeprefix("bert."): value for name, value in load_file(folder / WEIGHTS).items()}
    needed = [f"{EMBEDDINGS}.word_embeddings.weight", LAYER.format(config["num_hidden_layers"] - 1)]
    for name in needed:
        if not any(found.startswith(name) for found in weights):
            raise DataError(
                f"{WEIGHTS} of {folder}", found=f"without {name}", expected="the weights of a BertModel"
            )
    inputs = ["input_ids", "attention_mask", "token_type_ids"]
    max_length = int(config["max_position_embeddings"])
    write_text_graph(Bert(config, weights), inputs, "last_hidden_state", max_length, graph)
