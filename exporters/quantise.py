"""Smaller and faster forms of an encoder's graph; each function takes the exact graph and returns one form.

The item table stays the bundle's in every form: it is outside the graph and shared by all of them.
"""

import logging
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from recserve.engine.bundle import layout
from recserve.exporters.onnx_graph import EncoderGraph

# What one call of the encoder reads, by the name of the input.
Inputs = dict[str, NDArray[np.generic]]

LINEAR = ["MatMul", "Gemm"]
ONLY_WEIGHTS = {"MatMulConstBOnly": True}
INT4_BLOCK = 32
# Below this, the operator that widens a weight costs more bytes than halving it saves.
MIN_HALVED = 256


def int8_dynamic(graph: EncoderGraph) -> EncoderGraph:
    """Weights of linear layers in 8 bits per output channel; activations are quantised as they come."""
    return replace(graph, data=int8_linear(graph.data))


def int8_linear(graph: bytes) -> bytes:
    """As :func:`int8_dynamic`, of any graph."""

    def quantise(source: Path, target: Path) -> None:
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=LINEAR,
            per_channel=True,
            # 7 bits: two products of 8 bits saturate the 16-bit sums of AVX2 machines.
            reduce_range=True,
            weight_type=QuantType.QInt8,
            extra_options=ONLY_WEIGHTS,
        )

    return _through_files(graph, quantise)


def int8_static(graph: EncoderGraph, recorded: Sequence[Inputs]) -> EncoderGraph:
    """As :func:`int8_dynamic`, with ranges of the activations calibrated on ``recorded`` inputs (QDQ)."""

    class Recorded(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            table = {layout.ITEM_EMBEDDINGS_INITIALIZER: graph.item_embeddings}
            self.batches = iter([inputs | table for inputs in recorded])

        def get_next(self) -> Inputs | None:
            return next(self.batches, None)

    def quantise(source: Path, target: Path) -> None:
        quantize_static(
            source,
            target,
            Recorded(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=LINEAR,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options=ONLY_WEIGHTS,
        )

    return replace(graph, data=_through_files(graph.data, quantise))


def int4_weights(graph: EncoderGraph) -> EncoderGraph:
    """Weights of linear layers in 4 bits, a scale for every 32 of them; activations stay float32."""
    proto = onnx.load_from_string(graph.data)
    _gemm_as_matmul(proto)
    with _quiet_quantiser():
        quantiser = MatMulNBitsQuantizer(proto, block_size=INT4_BLOCK, is_symmetric=True, accuracy_level=4)
        quantiser.process()
    return replace(graph, data=quantiser.model.model.SerializeToString())


def fp16_weights(graph: EncoderGraph) -> EncoderGraph:
    """Weights in half precision on disk; ONNX Runtime widens them once, at load. For size, not for speed."""
    return replace(graph, data=fp16_tensors(graph.data))


def fp16_tensors(graph: bytes) -> bytes:
    """As :func:`fp16_weights`, of any graph; of a table that is gathered from, the rows alone are widened."""
    proto = onnx.load_from_string(graph)
    halved = [tensor for tensor in proto.graph.initializer if _is_large(tensor)]
    tables = {tensor.name for tensor in halved} - {
        name
        for node in proto.graph.node
        for i, name in enumerate(node.input)
        if node.op_type != "Gather" or i != 0
    }
    nodes = []
    for tensor in halved:
        name, half = tensor.name, f"{tensor.name}.fp16"
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), half))
        if name not in tables:
            nodes.append(helper.make_node("Cast", [half], [name], to=TensorProto.FLOAT))
    for node in proto.graph.node:
        nodes.append(node)
        if node.op_type == "Gather" and node.input[0] in tables:
            rows, node.input[0] = node.output[0], f"{node.input[0]}.fp16"
            node.output[0] = f"{rows}.fp16"
            nodes.append(helper.make_node("Cast", [node.output[0]], [rows], to=TensorProto.FLOAT))
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    data: bytes = proto.SerializeToString()
    return data


def _is_large(tensor: TensorProto) -> bool:
    is_float = tensor.data_type == TensorProto.FLOAT and not tensor.external_data
    return is_float and math.prod(tensor.dims) >= MIN_HALVED


def _through_files(graph: bytes, quantise: Callable[[Path, Path], None]) -> bytes:
    """Runs a quantiser that reads and writes files over the graph without its item table."""
    proto = onnx.load_from_string(graph)
    tables = [t for t in proto.graph.initializer if t.name == layout.ITEM_EMBEDDINGS_INITIALIZER]
    for table in tables:
        proto.graph.initializer.remove(table)
        proto.graph.input.append(helper.make_tensor_value_info(table.name, TensorProto.FLOAT, table.dims))
    with tempfile.TemporaryDirectory() as folder, _quiet_quantiser():
        source, target = Path(folder, "exact.onnx"), Path(folder, "quantised.onnx")
        onnx.save(proto, source)
        quantise(source, target)
        quantised = onnx.load(target)
    for value in [v for v in quantised.graph.input if v.name == layout.ITEM_EMBEDDINGS_INITIALIZER]:
        quantised.graph.input.remove(value)
    quantised.graph.initializer.extend(tables)
    data: bytes = quantised.SerializeToString()
    return data


def _gemm_as_matmul(proto: onnx.ModelProto) -> None:
    """Writes every Gemm as a product and a sum: the 4-bit operator replaces products only."""
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    nodes = []
    for node in proto.graph.node:
        if node.op_type != "Gemm" or node.input[1] not in weights:
            nodes.append(node)
            continue
        settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        weight = numpy_helper.to_array(weights[node.input[1]])
        transposed = f"{node.output[0]}.weight"
        proto.graph.initializer.append(
            numpy_helper.from_array(
                np.ascontiguousarray(weight.T if settings.get("transB") else weight), transposed
            )
        )
        product = f"{node.output[0]}.product"
        nodes.append(helper.make_node("MatMul", [node.input[0], transposed], [product]))
        nodes.append(helper.make_node("Add", [product, node.input[2]], list(node.output)))
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    for name, tensor in weights.items():
        if name not in used:
            proto.graph.initializer.remove(tensor)


@contextmanager
def _quiet_quantiser() -> Iterator[None]:
    """Hides the quantisers' advice and progress, which they give to the root logger."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    quantiser = logging.getLogger("onnxruntime.quantization.matmul_nbits_quantizer")
    quantiser_level = quantiser.level
    quantiser.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        quantiser.setLevel(quantiser_level)
