"""Looks into an ONNX graph before ONNX Runtime does: operators, files that it refers to, its weights.

ONNX Runtime loads graphs with weights that are not numbers, or with operators that never end, without a word.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from recserve.engine.bundle.item_table import Part
from recserve.errors import BundleInvalid, BundleReason
from recserve.proto import onnx_outline_pb2 as pb

# Every operator of ONNX itself, but what repeats a part of the graph: it may never end.
STANDARD = ("", "ai.onnx")
LOOPS = frozenset({"Loop", "Scan"})
# Those of ONNX Runtime that an exporter here writes.
MICROSOFT = "com.microsoft"
MICROSOFT_OPERATORS = frozenset({"MatMulNBits", "GatherBlockQuantized", "QuantizeLinear", "DequantizeLinear"})
# The numbers of onnx.proto for element types that can be NaN, and for what item tables are made of.
FLOAT, UINT8, INT8, FLOAT16, DOUBLE = 1, 2, 3, 10, 11
TABLE_TYPES = {
    np.dtype("<f4"): FLOAT,
    np.dtype("u1"): UINT8,
    np.dtype("i1"): INT8,
    np.dtype("<f2"): FLOAT16,
}
FLOAT_TYPES: dict[int, np.dtype[Any]] = {
    FLOAT: np.dtype("<f4"),
    FLOAT16: np.dtype("<f2"),
    DOUBLE: np.dtype("<f8"),
}


def check_graph(
    data: bytes, name: str, table: Mapping[str, Part] | None = None, shape: tuple[int, int] = (0, 0)
) -> None:
    """Raises :class:`BundleInvalid` unless the graph in file ``name`` is one that may be run.

    ``table``: the parts of the bundle's item table of ``shape`` (n_items, embedding_size), which may lie
    outside the graph; none: nothing may.
    """
    try:
        model = pb.Model.FromString(data)
    except DecodeError as error:
        raise _malformed(name) from error
    if not model.graph.node:
        raise _malformed(name)
    own = {(function.domain, function.name) for function in model.functions}
    nodes, tensors = _parts(model)
    for node in nodes:
        if not _is_allowed(node, own):
            operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            raise BundleInvalid(
                f"an operator of {name}",
                found=operator,
                expected="one of ONNX that ends, or that recserve writes",
                reason=BundleReason.GRAPH_OPERATOR,
            )
    for tensor in tensors:
        _check_finite(tensor, name)
        if tensor.data_location or tensor.external_data:
            _check_reference(tensor, name, table or {}, shape)


def _parts(model: pb.Model) -> tuple[list[pb.Node], list[pb.Tensor]]:
    """Returns every operator and every tensor of a model, those inside operators and functions too."""
    nodes: list[pb.Node] = []
    tensors: list[pb.Tensor] = []
    sparse: list[pb.SparseTensor] = []
    waiting: list[pb.Graph | pb.Function] = [model.graph, *model.functions]
    while waiting:
        part = waiting.pop()
        if isinstance(part, pb.Graph):
            tensors += part.initializer
            sparse += part.sparse_initializer
        for node in part.node:
            nodes.append(node)
            for attribute in node.attribute:
                tensors += [*attribute.tensors, attribute.t]
                sparse += [*attribute.sparse_tensors, attribute.sparse_tensor]
                waiting += [*attribute.graphs, attribute.g]
    for one in sparse:
        tensors += (one.values, one.indices)
    return nodes, tensors


def _is_allowed(node: pb.Node, own: set[tuple[str, str]]) -> bool:
    if (node.domain, node.op_type) in own:
        return True
    if node.domain == MICROSOFT:
        return node.op_type in MICROSOFT_OPERATORS
    return node.domain in STANDARD and node.op_type not in LOOPS


def _check_finite(tensor: pb.Tensor, name: str) -> None:
    dtype = FLOAT_TYPES.get(tensor.data_type)
    if dtype is None:
        return
    try:
        if tensor.raw_data:
            values = np.frombuffer(tensor.raw_data, dtype)
        elif tensor.data_type == FLOAT16:
            values = np.array(tensor.int32_data, np.int32).astype(np.uint16).view(dtype)
        else:
            values = np.array([*tensor.float_data, *tensor.double_data])
    except ValueError as error:
        raise _malformed(name) from error
    # One number alone may be infinite: what masks a softmax.
    if not np.isfinite(values).all() and (values.size > 1 or np.isnan(values).any()):
        raise BundleInvalid(
            f"weights {_text(tensor.name)} of {name}",
            found="NaN or infinite",
            expected="finite numbers",
            reason=BundleReason.NOT_FINITE,
        )


def _check_reference(tensor: pb.Tensor, name: str, table: Mapping[str, Part], shape: tuple[int, int]) -> None:
    """Lets the item table be outside, as its files have it: the engine binds it, nobody opens a file."""
    location = b"".join(entry.value for entry in tensor.external_data if entry.key == b"location")
    part = {key.encode(): part for key, part in table.items()}.get(tensor.name)
    if part is None or location != part.file.encode():
        files = ", ".join(f"{part.file} for {key}" for key, part in table.items())
        raise BundleInvalid(
            f"data of {_text(tensor.name)} in {name}",
            found=f"outside, in {_text(location)!r}",
            expected=f"inside, or {files}" if files else "inside",
            reason=BundleReason.GRAPH_OUTSIDE_DATA,
        )
    if (*tensor.dims,) != part.shape(*shape) or tensor.data_type != TABLE_TYPES[part.dtype]:
        raise BundleInvalid(
            f"shape of the item table in {name}",
            found=(*tensor.dims,),
            expected=f"{part.dtype.name} of shape {part.shape(*shape)}",
            reason=BundleReason.SHAPE,
        )


def _malformed(name: str) -> BundleInvalid:
    return BundleInvalid(
        f"graph {name}", found="unreadable", expected="an ONNX graph", reason=BundleReason.CONTENT_MALFORMED
    )


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
