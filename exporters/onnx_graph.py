"""Torch query encoder → ONNX graph, with the item table left outside the graph."""

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript.optimizer import fold_constants
from torch import Tensor, nn

from recserve.engine.bundle import layout
from recserve.engine.bundle.item_table import FLOAT32, Parts, pack
from recserve.errors import CheckFailed
from recserve.training.models.incremental import IncrementalModel
from recserve.training.models.sequence import SequenceModel

# 20 is the exporter's default and as fast as 23/24 (whose Attention operator older runtimes lack).
OPSET = 20
# Elements of the largest weight that constant folding takes apart.
MAX_FOLDED = 1 << 26


@dataclass(frozen=True, slots=True)
class EncoderGraph:
    """An ONNX query encoder: graph bytes, the features it reads, and the item table it refers to.

    ``item_embeddings``: the vectors that ``parts``, the table as stored, stand for.
    """

    data: bytes
    features: list[str]
    item_embeddings: NDArray[np.float32]
    parts: Parts

    @property
    def size_bytes(self) -> int:
        """What it needs on disk: the graph and its item table."""
        return len(self.data) + sum(part.nbytes for part in self.parts.values())

    def session(self, folder: Path, *, without: Sequence[str] = ()) -> ort.InferenceSession:
        """Returns a session on one CPU thread; ``folder`` holds the item table's files already.

        ``without``: optimizers of ONNX Runtime that are not to touch the graph.
        """
        options = ort.SessionOptions()
        options.add_session_config_entry(layout.EXTERNAL_FOLDER_OPTION, str(folder))
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        # ONNX Runtime reads them when the session is made: they must live until then.
        bound = {name: ort.OrtValue.ortvalue_from_numpy(part) for name, part in self.parts.items()}
        for name, value in bound.items():
            options.add_initializer(name, value)
        return ort.InferenceSession(
            self.data, options, providers=["CPUExecutionProvider"], disabled_optimizers=without
        )


class _Encoder(nn.Module):
    """What is exported: the encoding of the whole history, not of every prefix."""

    def __init__(self, model: SequenceModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, history: Tensor, time_gaps: Tensor | None = None) -> Tensor:
        return self.model.encode(history, time_gaps)


class _IncrementalEncoder(nn.Module):
    """What is exported for a history of which a part was encoded before."""

    def __init__(self, model: IncrementalModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        history: Tensor,
        past: list[Tensor],
        time_gaps: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        return self.model.encode_new(history, past, time_gaps)


def export_query_encoder(model: SequenceModel) -> EncoderGraph:
    """Exports ``model`` with free batch and history length; inputs and output as the bundle names them."""
    features = [layout.HISTORY_INPUT] + ([layout.TIME_GAPS_INPUT] if model.config.time_gaps else [])
    length = min(7, model.config.max_history)
    history = torch.arange(3 * length, dtype=torch.int32).reshape(3, length) % model.n_items
    arguments = (history, torch.ones(3, length)) if model.config.time_gaps else (history,)
    batch_dim = torch.export.Dim("batch", min=1, max=1 << 16)
    # A model of one position has nothing to leave free.
    length_dim = torch.export.Dim("length", min=1, max=model.config.max_history) if length > 1 else None
    shape = {0: batch_dim, 1: length_dim} if length_dim is not None else {0: batch_dim}
    shapes = tuple(shape for _ in features)
    return _exported(model, _Encoder(model), arguments, features, [layout.QUERY_EMBEDDING_OUTPUT], shapes)


def export_incremental_encoder(model: IncrementalModel) -> EncoderGraph:
    """Exports ``model.encode_new``, for one history, with free numbers of items before and of new ones."""
    longest = model.config.max_history
    # Both fit into a short history (of 4 or more), too: sizes of 0 and 1 would not stay free.
    n_new = min(3, longest // 2)
    n_past = min(5, longest - n_new)
    history = torch.arange(n_new, dtype=torch.int32) % model.n_items
    past = list(torch.zeros(model.past_shape(n_past)))
    features = [layout.HISTORY_INPUT, *(f"{layout.PAST_INPUT}{i}" for i in range(len(past)))]
    arguments: tuple[Any, ...] = (history, past)
    past_dim, new_dim = (torch.export.Dim(name, min=0, max=longest) for name in ("past", "new"))
    shapes: tuple[Any, ...] = ({0: new_dim}, [{0: past_dim}] * len(past))
    if model.config.time_gaps:
        features.append(layout.TIME_GAPS_INPUT)
        arguments = (*arguments, torch.ones(n_past + n_new))
        shapes = (*shapes, {0: torch.export.Dim.AUTO})
    outputs = [layout.QUERY_EMBEDDING_OUTPUT, layout.NEW_OUTPUT]
    return _exported(model, _IncrementalEncoder(model), arguments, features, outputs, shapes)


def _exported(
    model: SequenceModel,
    module: nn.Module,
    arguments: tuple[Any, ...],
    inputs: list[str],
    outputs: list[str],
    shapes: tuple[Any, ...],
) -> EncoderGraph:
    """Exports ``module``, which reads the item table of ``model``; ``shapes``: what is free of each input."""
    model.eval()
    with quiet_exporter():
        program = torch.onnx.export(
            module,
            arguments,
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=shapes,
        )
    if program is None:
        raise CheckFailed("ONNX export", found="empty", expected="a graph")
    fold(program)
    proto = program.model_proto
    table = np.ascontiguousarray(model.item_embeddings.detach().numpy())
    _refer_to_item_table(proto, table)
    forget_the_exporter(proto)
    return EncoderGraph(proto.SerializeToString(), inputs, table, pack(table, FLOAT32))


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Hides what the exporter says of its own internals; what matters is checked by parity."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def fold(program: torch.onnx.ONNXProgram) -> None:
    """Computes slices of weights here, not at every load; the exporter itself folds small tensors only."""
    with quiet_exporter():
        fold_constants(program.model, input_size_limit=MAX_FOLDED, output_size_limit=MAX_FOLDED)
        RemoveUnusedNodesPass()(program.model)


def _refer_to_item_table(proto: onnx.ModelProto, table: NDArray[np.float32]) -> None:
    """Replaces the copy of the item table inside the graph by a reference to the bundle's file.

    The engine binds the memory map of that file at load, so the vectors exist once.
    """
    named = [tensor for tensor in proto.graph.initializer if tensor.name.endswith("item_embeddings")]
    if len(named) != 1 or tuple(named[0].dims) != table.shape:
        raise CheckFailed("item tables in the graph", found=len(named), expected="one of the model's shape")
    tensor = named[0]
    for node in proto.graph.node:
        for i, name in enumerate(node.input):
            if name == tensor.name:
                node.input[i] = layout.ITEM_EMBEDDINGS_INITIALIZER
    refer_outside(tensor, layout.ITEM_EMBEDDINGS_INITIALIZER, layout.ITEM_EMBEDDINGS, table)


def refer_outside(tensor: onnx.TensorProto, name: str, file: str, array: NDArray[np.generic]) -> None:
    """Makes ``tensor`` the initializer ``name``, whose numbers are ``array`` in the bundle's ``file``."""
    tensor.name = name
    tensor.ClearField("raw_data")
    tensor.data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor.dims[:] = array.shape
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    entries = {"location": file, "offset": str(npy_header_bytes(array)), "length": str(array.nbytes)}
    for key, value in entries.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value


def forget_the_exporter(proto: onnx.ModelProto) -> None:
    """Removes source lines and paths of the exporting machine, most of a small graph's bytes."""
    del proto.metadata_props[:]
    # Shapes between nodes, of which constant folding left some wrong; every reader infers them itself.
    del proto.graph.value_info[:]
    graph = proto.graph
    for part in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        part.doc_string = ""
        del part.metadata_props[:]


def npy_header_bytes(array: NDArray[np.generic]) -> int:
    """Returns where the data of ``array`` starts in its ``.npy`` file."""
    buffer = io.BytesIO()
    header = np.lib.format.header_data_from_array_1_0(array)
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.tell()
