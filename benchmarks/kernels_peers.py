"""What else answers the same question exactly: NumPy, ONNX Runtime and FAISS, each on one thread."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
Search = Callable[[Vectors, int], tuple[Any, Any]]


def numpy_search(vectors: Vectors) -> Search:
    """Matrix product, argpartition, sort of the k."""

    def search(queries: Vectors, k: int) -> tuple[Any, Any]:
        scores = queries @ vectors.T
        best = np.argpartition(-scores, k, axis=1)[:, :k]
        best_scores = np.take_along_axis(scores, best, axis=1)
        order = np.argsort(-best_scores, axis=1, kind="stable")
        return np.take_along_axis(best_scores, order, axis=1), np.take_along_axis(best, order, axis=1)

    return search


def onnxruntime_search(vectors: Vectors) -> Search:
    """A graph of MatMul and TopK on the CPU provider."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("MatMul", ["queries", "items"], ["scores"]),
        helper.make_node("TopK", ["scores", "k"], ["best", "indices"], axis=1, largest=1, sorted=1),
    ]
    graph = helper.make_graph(
        nodes,
        "top_k",
        [
            helper.make_tensor_value_info("queries", TensorProto.FLOAT, ["batch", vectors.shape[1]]),
            helper.make_tensor_value_info("k", TensorProto.INT64, [1]),
        ],
        [
            helper.make_tensor_value_info("best", TensorProto.FLOAT, ["batch", "k"]),
            helper.make_tensor_value_info("indices", TensorProto.INT64, ["batch", "k"]),
        ],
        [numpy_helper.from_array(np.ascontiguousarray(vectors.T), "items")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
    )

    def search(queries: Vectors, k: int) -> tuple[Any, Any]:
        best, indices = session.run(None, {"queries": queries, "k": np.array([k])})
        return best, indices

    return search


def faiss_search(vectors: Vectors) -> Search:
    """IndexFlatIP."""
    import faiss

    faiss.omp_set_num_threads(1)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)

    def search(queries: Vectors, k: int) -> tuple[Any, Any]:
        scores, indices = index.search(queries, k)
        return scores, indices

    return search


PEERS = {"numpy": numpy_search, "onnxruntime": onnxruntime_search, "faiss": faiss_search}


def load(vectors: Vectors, skip: Callable[[str, str], None]) -> dict[str, Search]:
    """Returns the peers that are installed; calls ``skip(name, reason)`` for each other one."""
    peers = {}
    for name, make in PEERS.items():
        try:
            peers[name] = make(vectors)
        except ImportError as error:
            skip(name, str(error))
    return peers
