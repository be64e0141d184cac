"""What else answers the same question exactly. Each peer gets the vectors once and its own thread setting."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
Search = Callable[[Vectors, int], tuple[Any, Any]]  # (queries, k) → (scores, item indices), best first
Make = Callable[[Vectors, int], Search]

# Of all scores of a batch and what selecting from them makes. More queries than that are searched in blocks,
# as anybody would: ten million items need not have 16 GB at hand.
MAX_SCORES_BYTES = 1 << 30

MAX_GRAPH_BYTES = (2 << 30) - (1 << 20)  # of a protobuf message, which an ONNX graph with its weights is


def numpy_search(vectors: Vectors, threads: int) -> Search:
    """Matrix product, argpartition, sort of the k; the threads are those of the environment."""

    def search(queries: Vectors, k: int) -> tuple[Any, Any]:
        scores = queries @ vectors.T
        best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        best_scores = np.take_along_axis(scores, best, axis=1)
        order = np.argsort(-best_scores, axis=1, kind="stable")
        return np.take_along_axis(best_scores, order, axis=1), np.take_along_axis(best, order, axis=1)

    return in_blocks(search, 16 * len(vectors))  # scores, their negatives, 64-bit indices


def torch_search(vectors: Vectors, threads: int) -> Search:
    """Matrix product and torch.topk."""
    import torch

    torch.set_num_threads(threads)
    items = torch.from_numpy(vectors).T

    def search(queries: Vectors, k: int) -> tuple[Any, Any]:
        with torch.inference_mode():
            scores, indices = torch.topk(torch.from_numpy(queries) @ items, k, dim=1)
        return scores.numpy(), indices.numpy()

    return in_blocks(search, 4 * len(vectors))


def onnxruntime_search(vectors: Vectors, threads: int) -> Search:
    """A graph of MatMul and TopK on the CPU provider."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    if vectors.nbytes > MAX_GRAPH_BYTES:
        raise ImportError(f"a graph of {vectors.nbytes:,} bytes of weights is more than protobuf can hold")
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
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that spin after their work would slow whoever is timed next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )

    def search(queries: Vectors, k: int) -> tuple[Any, Any]:
        best, indices = session.run(None, {"queries": queries, "k": np.array([k])})
        return best, indices

    return search


def faiss_search(vectors: Vectors, threads: int) -> Search:
    """IndexFlatIP."""
    import faiss

    faiss.omp_set_num_threads(threads)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)

    def search(queries: Vectors, k: int) -> tuple[Any, Any]:
        scores, indices = index.search(queries, k)
        return scores, indices

    return search


def implicit_search(vectors: Vectors, threads: int) -> Search:
    """The top-K of implicit's matrix factorisation models."""
    # implicit warns when BLAS has threads of its own; here they are pinned before NumPy loads.
    os.environ.setdefault("MKL_NUM_THREADS", str(threads))
    from implicit.cpu.topk import topk

    def search(queries: Vectors, k: int) -> tuple[Any, Any]:
        indices, scores = topk(vectors, queries, k, num_threads=threads)
        return scores, indices

    return search


def usearch_search(vectors: Vectors, threads: int) -> Search:
    """Its exact search."""
    from usearch.index import MetricKind
    from usearch.index import search as exact_search

    def search(queries: Vectors, k: int) -> tuple[Any, Any]:
        found = exact_search(vectors, queries, k, MetricKind.IP, exact=True, threads=threads)
        shape = (len(queries), -1)
        return 1 - np.reshape(found.distances, shape), np.reshape(found.keys, shape)

    return search


def in_blocks(search: Search, query_bytes: int) -> Search:
    """``search``, with so few queries at a time that ``query_bytes`` of each stay below a gigabyte."""
    most = max(1, MAX_SCORES_BYTES // query_bytes)

    def search_blocks(queries: Vectors, k: int) -> tuple[Any, Any]:
        if len(queries) <= most:
            return search(queries, k)
        answers = [search(queries[first : first + most], k) for first in range(0, len(queries), most)]
        scores, indices = (np.concatenate(part) for part in zip(*answers, strict=True))
        return scores, indices

    return search_blocks


EXACT: dict[str, Make] = {
    "numpy": numpy_search,
    "torch": torch_search,
    "onnxruntime": onnxruntime_search,
    "faiss": faiss_search,
    "implicit": implicit_search,
    "usearch": usearch_search,
}


def load(
    vectors: Vectors, threads: int, names: Sequence[str], skip: Callable[[str, str], None]
) -> dict[str, Search]:
    """Builds those of ``names`` that are exact; calls ``skip(name, reason)`` for what is not installed."""
    peers = {}
    for name in EXACT:
        if name not in names:
            continue
        try:
            peers[name] = EXACT[name](vectors, threads)
        except ImportError as error:
            skip(name, str(error))
    return peers
