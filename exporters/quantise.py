"""Smaller and faster forms of an encoder's graph; each function takes the exact graph and returns one form.

The item table stays the bundle's in every form: it is outside the graph and shared by all of them.
"""

import logging
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

    return _through_files(graph, quantise)


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
    proto = onnx.load_from_string(graph.data)
    widened = []
    for tensor in proto.graph.initializer:
        weights = None if tensor.external_data else numpy_helper.to_array(tensor)
        if weights is None or weights.dtype != np.float32 or weights.size < MIN_HALVED:
            continue
        name, half = tensor.name, f"{tensor.name}.fp16"
        tensor.CopyFrom(numpy_helper.from_array(weights.astype(np.float16), half))
        widened.append(helper.make_node("Cast", [half], [name], to=TensorProto.FLOAT))
    nodes = [*widened, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return replace(graph, data=proto.SerializeToString())


def _through_files(graph: EncoderGraph, quantise: Callable[[Path, Path], None]) -> EncoderGraph:
    """Runs a quantiser that reads and writes files over the graph without its item table."""
    proto = onnx.load_from_string(graph.data)
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
    return replace(graph, data=quantised.SerializeToString())


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
