"""Slates → ModelInferResponse."""

from collections.abc import Sequence

import numpy as np

from recserve.engine.server.open_inference.requests import ITEM_ID, Ask, Output
from recserve.engine.server.open_inference.tensors import BYTES, join_elements
from recserve.engine.types import Slate
from recserve.proto import open_inference_pb2 as pb


def build_reply(id_: str, model: str, ask: Ask, slates: Sequence[Slate]) -> pb.ModelInferResponse:
    """Returns the answer of ``model`` to the request ``id_``: row i is ``slates[i]``, all of one version."""
    reply = pb.ModelInferResponse(model_name=model, model_version=slates[0].bundle_version, id=id_)
    for output in ask.outputs:
        datatype, width, raw = _tensor(output, ask.k, slates)
        reply.outputs.add(name=output.name, datatype=datatype, shape=[len(slates), width])
        reply.raw_output_contents.append(raw)
    reply.parameters["source"].string_param = ",".join(slate.source for slate in slates)
    if any(slate.degraded for slate in slates):
        reply.parameters["degraded"].string_param = ";".join(",".join(slate.degraded) for slate in slates)
    warnings = [f"row {row}: {warning}" for row, slate in enumerate(slates) for warning in slate.warnings]
    if warnings:
        reply.parameters["warnings"].string_param = "\n".join(warnings)
    return reply


def _tensor(output: Output, k: int, slates: Sequence[Slate]) -> tuple[str, int, bytes]:
    """Returns datatype, row width and raw contents."""
    if output.classification:
        width = min(output.classification, k)
        classes = [
            [f"{item.score:f}:{i}:{item.item_id}".encode() for i, item in enumerate(slate.items[:width])]
            for slate in slates
        ]
        return BYTES, width, join_elements(classes, width)
    if output.name == ITEM_ID:
        return BYTES, k, join_elements([[item.item_id.encode() for item in s.items] for s in slates], k)
    scores = np.full((len(slates), k), -np.inf, "<f4")
    for row, slate in zip(scores, slates, strict=True):
        row[: len(slate.items)] = [item.score for item in slate.items]
    return "FP32", k, scores.tobytes()
