"""An encoder over a smaller item table: the rows that a graph gathers are widened, never the whole table."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper

from recserve.engine.bundle.graph_check import MICROSOFT
from recserve.engine.bundle.item_table import (
    BLOCK,
    BLOCK_SCALES,
    FORMS,
    HALVES,
    INT4,
    NIBBLES,
    SCALES,
    Parts,
    pack,
    unpack,
)
from recserve.engine.bundle.layout import ITEM_EMBEDDINGS_INITIALIZER
from recserve.errors import CheckFailed, InvalidRequest
from recserve.exporters.onnx_graph import EncoderGraph, refer_outside


def over_table(graph: EncoderGraph, parts: Parts, form: str) -> EncoderGraph:
    """Returns ``graph``, which reads a float32 table, over the ``parts`` of that table in ``form``.

    The network is the same; its item vectors are those that the parts stand for. Raises :class:`CheckFailed`
    for a graph that does more with the table than gather rows of it.
    """
    if parts.keys() == graph.parts.keys():
        return graph
    proto = onnx.load_from_string(graph.data)
    nodes: list[NodeProto] = []
    for node in proto.graph.node:
        if ITEM_EMBEDDINGS_INITIALIZER not in node.input:
            nodes.append(node)
        elif node.op_type == "Gather" and list(node.input).index(ITEM_EMBEDDINGS_INITIALIZER) == 0:
            nodes += _widened(node, list(parts))
        else:
            raise CheckFailed(
                f"what reads the item table ({node.op_type})", found="all of it", expected="rows"
            )
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    if MICROSOFT not in {one.domain for one in proto.opset_import}:
        proto.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    [table] = [one for one in proto.graph.initializer if one.name == ITEM_EMBEDDINGS_INITIALIZER]
    proto.graph.initializer.remove(table)
    for name, array in parts.items():
        tensor = proto.graph.initializer.add()
        refer_outside(tensor, name, FORMS[form][name].file, array)
    return replace(graph, data=proto.SerializeToString(), item_embeddings=unpack(parts), parts=parts)


def stored(graph: EncoderGraph, form: str) -> Parts:
    """Returns the item table of ``graph`` as a bundle stores it in ``form``.

    Raises :class:`InvalidRequest` for 4-bit codes of an odd width, two of which are a byte.
    """
    vectors = np.asarray(graph.item_embeddings)
    if not can_store(vectors.shape[1], form):
        raise InvalidRequest(
            f"embedding_size for item_table {form}", found=vectors.shape[1], expected="an even number"
        )
    return pack(vectors, form)


def can_store(embedding_size: int, form: str) -> bool:
    """Whether an item table of this width has the form: two codes of 4 bits are a byte."""
    return form != INT4 or embedding_size % 2 == 0


def save_parts(parts: Parts, form: str, folder: Path) -> None:
    """Writes a stored table to ``folder``, for the sessions of graphs that refer to it."""
    for name, part in parts.items():
        np.save(folder / FORMS[form][name].file, part)


def _widened(gather: NodeProto, parts: list[str]) -> list[NodeProto]:
    """Returns nodes that give what ``gather`` gave: the same rows of each part, cast, perhaps scaled."""
    rows, result = gather.input[1], gather.output[0]
    if parts == [NIBBLES, BLOCK_SCALES]:
        settings = {"bits": 4, "block_size": BLOCK, "gather_axis": 0, "quantize_axis": 1}
        inputs = [NIBBLES, rows, BLOCK_SCALES]
        return [helper.make_node("GatherBlockQuantized", inputs, [result], domain=MICROSOFT, **settings)]
    narrow, wide = f"{result}.narrow", f"{result}.wide"
    first = helper.make_node("Gather", [parts[0], rows], [narrow], axis=0)
    if parts == [HALVES]:
        return [first, helper.make_node("Cast", [narrow], [result], to=TensorProto.FLOAT)]
    scale = f"{result}.scale"
    return [
        first,
        helper.make_node("Cast", [narrow], [wide], to=TensorProto.FLOAT),
        helper.make_node("Gather", [SCALES, rows], [scale], axis=0),
        helper.make_node("Mul", [wide, scale], [result]),
    ]
