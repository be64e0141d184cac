"""A ranker as torch exports it by itself: what a pipeline by hand would serve."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from recserve.engine.bundle import layout
from recserve.errors import InvalidRequest
from recserve.exporters.onnx_graph import OPSET, quiet_exporter
from recserve.training.models.ranker import Ranker


class _Forward(nn.Module):
    """The model with its inputs in the order of their names below."""

    def __init__(self, model: Ranker) -> None:
        super().__init__()
        self.model = model

    def forward(self, history: Tensor, user: Tensor, context: Tensor, candidates: Tensor) -> Tensor:
        return cast(Tensor, self.model(history, user, context, candidates))


def as_exported(model: Ranker) -> bytes:
    """Returns the graph of the model's forward pass with free sizes, the features of the items inside.

    It looks up the features of every candidate and embeds them; the bundle's graph has what the model
    computes of an item alone as tables. Raises :class:`InvalidRequest` for one without history or moment.
    """
    if not model.config.max_history or not model.schema.context:
        raise InvalidRequest("ranker", found="without history or moment", expected="one with both")
    dim = torch.export.Dim
    batch, length, n = (dim(name, min=1, max=1 << 20) for name in ("batch", "length", "n_candidates"))
    candidates = torch.arange(8).reshape(2, 4)
    inputs: dict[str, tuple[Tensor, dict[int, Any]]] = {
        layout.HISTORY_INPUT: (candidates[:, :3], {0: batch, 1: length}),
        layout.USER_INPUT: (model.user_rows[:2], {0: batch}),
        layout.CONTEXT_INPUT: (torch.zeros((2, len(model.schema.context)), dtype=torch.int64), {0: batch}),
        layout.CANDIDATES_INPUT: (candidates, {0: batch, 1: n}),
    }
    with quiet_exporter():
        program = torch.onnx.export(
            _Forward(model.eval()),
            tuple(tensor for tensor, _ in inputs.values()),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=[layout.LOGITS_OUTPUT],
            dynamic_shapes=tuple(shape for _, shape in inputs.values()),
        )
    data: bytes = cast(Any, program).model_proto.SerializeToString()
    return data
