"""Torch ranker → ONNX graph: what it computes of an item alone is a table of the whole catalogue."""

import itertools
from typing import Any, cast

import onnxruntime as ort
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recserve.engine.bundle import layout
from recserve.errors import CheckFailed
from recserve.exporters.onnx_graph import OPSET, fold, forget_the_exporter, quiet_exporter
from recserve.training.models.ranker import Fields, Ranker


class _Graph(nn.Module):
    """What is exported: the items' side is a table of the whole catalogue, gathered by candidate."""

    def __init__(self, model: Ranker) -> None:
        super().__init__()
        self.model = model.for_many_candidates()
        with torch.inference_mode():
            tables = [table.clone() for table in self.model.item_tables()]
        self.n_tables = len(tables)
        for i, table in enumerate(tables):
            self.register_buffer(f"item_table_{i}", table)
        for fields in [part for part in self.model.modules() if isinstance(part, Fields)]:
            _join(fields)

    def forward(
        self,
        user: Tensor,
        candidates: Tensor,
        history: Tensor | None = None,
        context: Tensor | None = None,
        values: Tensor | None = None,
    ) -> Tensor:
        # Not by brackets, whose operator is several times as slow.
        items = tuple(F.embedding(candidates, getattr(self, f"item_table_{i}")) for i in range(self.n_tables))
        # What the model does not read is no input: a graph would ask for it to know the size of the batch.
        history = torch.full_like(user[:, :1], -1) if history is None else history
        context = user[:, :0] if context is None else context
        return self.model.logits(self.model.user_side(history, user, context, values), items)


class _JoinedFields(Fields):
    """The user's side of the fields from two tables: for one request every operator more costs a microsecond.

    ``columns``: the tables of all columns, one below the other, from ``starts`` (n,) on. ``met``: the
    history's vectors, and a 1 beside each that counts.
    """

    columns: Tensor
    starts: Tensor
    met: Tensor | None

    def user(self, history: Tensor, columns: Tensor) -> Tensor:
        vectors = F.embedding(columns + self.starts, self.columns)
        if self.met is None:
            return vectors
        total = F.embedding(history, self.met).sum(dim=1, keepdim=True)
        return torch.cat([vectors, total[..., :-1] / total[..., -1:].clamp(min=1)], dim=1)


def _join(fields: Fields) -> None:
    """Makes ``fields`` what :class:`_JoinedFields` says, in place."""
    tables = [cast(nn.Embedding, table).weight.detach() for table in fields.user_columns]
    fields.register_buffer("columns", torch.cat(tables))
    starts = [0, *itertools.accumulate(len(table) for table in tables[:-1])]
    fields.register_buffer("starts", torch.tensor(starts))
    met = None
    if fields.has_history:
        own = fields.item_id if fields.history is None else fields.history  # None: shared with the items
        vectors = cast(nn.Embedding, own).weight.detach()
        real = torch.ones(len(vectors), 1)
        real[0] = 0
        met = torch.cat([vectors * real, real], dim=1)
    fields.register_buffer("met", met)
    fields.__class__ = _JoinedFields


def export_graph(model: Ranker) -> bytes:
    """Exports ``model`` with free batch, history length and number of candidates, and the inputs it uses."""
    model.eval()
    dim = torch.export.Dim
    batch, length, n = (dim(name, min=1, max=1 << 20) for name in ("batch", "length", "n_candidates"))
    candidates = torch.arange(8).reshape(2, 4) % model.n_items
    arguments: dict[str, tuple[Tensor, dict[int, Any]] | None] = {
        layout.USER_INPUT: (model.user_rows[:2], {0: batch}),
        layout.CANDIDATES_INPUT: (candidates, {0: batch, 1: n}),
        layout.HISTORY_INPUT: (candidates[:, :3], {0: batch, 1: length})
        if model.config.max_history
        else None,
        layout.CONTEXT_INPUT: (torch.zeros((2, len(model.schema.context)), dtype=torch.int64), {0: batch})
        if model.schema.context
        else None,
        layout.HISTORY_VALUES_INPUT: (torch.ones((2, 3)), {0: batch, 1: length}) if model.appraisal else None,
    }
    with quiet_exporter():
        program = torch.onnx.export(
            _Graph(model),
            tuple(given and given[0] for given in arguments.values()),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=[name for name, given in arguments.items() if given],
            output_names=[layout.LOGITS_OUTPUT],
            dynamic_shapes=tuple(given and given[1] for given in arguments.values()),
        )
    if program is None:
        raise CheckFailed("ONNX export", found="empty", expected="a graph")
    fold(program)
    proto = program.model_proto
    forget_the_exporter(proto)
    data: bytes = proto.SerializeToString()
    return data


def open_graph(graph: bytes) -> ort.InferenceSession:
    """Returns a session on one CPU thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
