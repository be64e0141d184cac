"""What a graph costs at least on this machine (Williams et al. 2009, doi:10.1145/1498765.1498785).

Operations are those of its matrix products, a multiply-add is two; bytes are what each operator reads and
writes, weights too, as if nothing stayed in a register, at the bandwidth of so many bytes: what one operator
moves may well stay in a cache. A call takes at least the longer of operations / peak and bytes / bandwidth;
the operators between the products, their calls and their synchronisation come on top.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

from recserve.benchmarks.kernels.limits import Limits
from recserve.engine.bundle import layout

# What multiplies 4-bit weights widens them first.
GATHERS = ("Gather", "GatherBlockQuantized")
FP32_PRODUCTS, INT8_PRODUCTS = ("MatMul", "Gemm", "MatMulNBits"), ("MatMulInteger",)
Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one call: operations in float32 and in 8 bits, and the bytes that each operator moves."""

    fp32: float
    int8: float
    moved: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        """Of all operators."""
        return sum(self.moved)

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return (self.fp32 + self.int8) / self.n_bytes

    def least_ms(self, limits: Limits) -> float:
        """The least milliseconds of a call on one thread of the machine of ``limits``."""
        computing = self.fp32 / limits.fp32_gflops + self.int8 / limits.int8_gops
        moving = sum(n_bytes / limits.bandwidth(n_bytes) for n_bytes in self.moved)
        return 1e-6 * max(computing, moving)


def cost_of(graph: bytes, folder: Path, inputs: Mapping[str, Array], parts: Mapping[str, Array]) -> Cost:
    """Counts one call of ``graph``, by running it with every result shown.

    ``parts``: the item table in ``folder`` that it refers to, of which a call reads the rows that it gathers.
    """
    model = onnx.load_from_string(graph)
    known = {one.name for one in model.graph.output}
    # NumPy has no bfloat16: what becomes one is counted, not shown.
    short = {node.output[0]: node.input[0] for node in model.graph.node if _is_to_bfloat16(node)}
    made = [name for node in model.graph.node for name in node.output if name and name not in known]
    made = [name for name in made if name not in short]
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in made)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry(layout.EXTERNAL_FOLDER_OPTION, str(folder))
    options.log_severity_level = 3
    bound = {name: ort.OrtValue.ortvalue_from_numpy(np.asarray(part)) for name, part in parts.items()}
    for name, value in bound.items():
        options.add_initializer(name, value)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs()]
    found: dict[str, Array] = dict(zip(names, session.run(names, dict(inputs)), strict=True))
    found |= inputs
    weights = {one.name: tuple(one.dims) for one in model.graph.initializer}
    sizes = {one.name: len(one.raw_data) for one in model.graph.initializer}
    sizes |= {name: array.nbytes for name, array in found.items()}
    sizes |= {name: 2 * found[source].size for name, source in short.items()}
    moved = []
    operations = {FP32_PRODUCTS: 0.0, INT8_PRODUCTS: 0.0}
    for node in model.graph.node:
        # Of a table it reads the rows that it gathers.
        read = (node.output[0], node.input[1]) if node.op_type in GATHERS else node.input
        moved.append(sum(sizes.get(name, 0) for name in (*read, *node.output)))
        for kinds in operations:
            if node.op_type in kinds:
                left = weights.get(node.input[0]) or found[node.input[0]].shape
                operations[kinds] += 2.0 * found[node.output[0]].size * _depth(node, left)
    return Cost(operations[FP32_PRODUCTS], operations[INT8_PRODUCTS], tuple(moved))


def _is_to_bfloat16(node: onnx.NodeProto) -> bool:
    return any(one.name == "to" and one.i == TensorProto.BFLOAT16 for one in node.attribute)


def _depth(node: onnx.NodeProto, left: Sequence[int]) -> int:
    """Returns how many products are summed to one number of the result."""
    transposed = any(one.name == "transA" and one.i for one in node.attribute)
    return left[0] if transposed else left[-1]
