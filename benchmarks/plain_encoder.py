"""An encoder as most code writes it, and as torch exports it by itself."""

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recserve.engine.bundle import layout
from recserve.exporters.onnx_graph import OPSET, quiet_exporter
from recserve.training.models.hstu import HSTU, N_TIME_BUCKETS, Layer
from recserve.training.models.sasrec import Block, SASRec
from recserve.training.models.sequence import SequenceModel


class _EveryPosition(nn.Module):
    """What is exported plainly: all encodings, of which the caller takes the last."""

    def __init__(self, model: SequenceModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, history: Tensor, time_gaps: Tensor | None = None) -> Tensor:
        return cast(Tensor, self.model(history, time_gaps))[:, -1]


class _ThreeProducts(Block):
    """A block whose query, key and value are linear layers of their own, as most code has it."""

    def _query_key_value(
        self, normed: Tensor, batch: int, length: int, newest_only: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        head = self.qkv.out_features // 3 // self.n_heads
        query, key, value = (
            F.linear(normed, weight, bias).view(batch, length, self.n_heads, head).transpose(1, 2)
            for weight, bias in zip(self.qkv.weight.chunk(3), self.qkv.bias.chunk(3), strict=True)
        )
        return query, key, value


class _AsWritten(Layer):
    """HSTU's attention with its biases read by brackets and its mask filled in, as most code has it.

    ``share``: (batch, 1, length, n_columns), where a row may look; ``bias``: (length, n_columns), the
    distances in positions.
    """

    def forward(
        self,
        x: Tensor,
        share: Tensor,
        bias: Tensor,
        buckets: Tensor | None,
        *,
        newest_only: bool = False,
    ) -> Tensor:
        batch, length, size = x.shape
        n_asked = 1 if newest_only else length
        gate, value, query, key = self._expand(self.input_norm(x), newest_only)
        logits = query @ key.transpose(-1, -2) + self.position_bias[bias[-n_asked:]]
        if self.time_bias is not None and buckets is not None:
            logits = logits + self.time_bias[buckets[:, -n_asked:]].unsqueeze(1)
        weights = (F.silu(logits) / len(self.position_bias)).masked_fill(~share[:, :, -n_asked:], 0.0)
        attended = (weights @ value).transpose(1, 2).reshape(batch * n_asked, size)
        asked = x[:, -n_asked:].reshape(batch * n_asked, size)
        projected: Tensor = self.project(self.attended_norm(attended) * gate)
        return asked + projected if newest_only else (asked + projected).view(batch, n_asked, size)


class _HSTUAsWritten(HSTU):
    """HSTU with the buckets of time by a logarithm in double precision; layers look their biases up."""

    def _input(
        self, history: Tensor, time_gaps: Tensor | None
    ) -> tuple[Tensor, Tensor, list[Tensor], Tensor | None]:
        x, _, _, buckets = super()._input(history, time_gaps)
        _, distance, mask = self.places(history)
        return x, mask.unsqueeze(1), [distance.clamp(min=0)] * len(self.layers), buckets

    def _buckets(self, time_gaps: Tensor, first: int = 0) -> Tensor:
        until_next = time_gaps.clamp(min=0).to(torch.float64).cumsum(1)
        since_start = until_next - time_gaps.clamp(min=0)
        apart = (until_next[:, first:].unsqueeze(2) - since_start.unsqueeze(1)).clamp(min=0)
        return torch.log1p(apart).floor().clamp(max=N_TIME_BUCKETS - 1).to(torch.int64)


def as_written(model: SequenceModel) -> SequenceModel:
    """Returns a copy of ``model``; of HSTU one whose layers are not arranged for ONNX Runtime."""
    plain = copy.deepcopy(model).eval()
    if isinstance(plain, HSTU):
        plain.__class__ = _HSTUAsWritten
        for layer in plain.layers:
            layer.__class__ = _AsWritten
    return plain


def as_exported(model: SequenceModel) -> bytes:
    """Returns the graph that torch makes of ``model`` by itself, with the item table inside."""
    plain = as_written(model)
    if isinstance(plain, SASRec):
        for block in plain.blocks:
            block.__class__ = _ThreeProducts
    length = model.config.max_history
    history = (torch.arange(2 * length, dtype=torch.int32) % model.n_items).view(2, length)
    gaps = (torch.ones(2, length),) if model.config.time_gaps else ()
    batch = torch.export.Dim("batch", min=1, max=1 << 16)
    with quiet_exporter():
        program = torch.onnx.export(
            _EveryPosition(plain),
            (history, *gaps),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=[layout.HISTORY_INPUT, layout.TIME_GAPS_INPUT][: 1 + len(gaps)],
            output_names=[layout.QUERY_EMBEDDING_OUTPUT],
            dynamic_shapes=tuple({0: batch} for _ in range(1 + len(gaps))),
        )
    data: bytes = cast(Any, program).model_proto.SerializeToString()
    return data
