"""Requests as a client writes them; answers as ``tritonclient`` reads them, from the raw contents alone."""

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recserve.proto import open_inference_pb2 as pb


def raw_bytes(elements: Sequence[str | bytes]) -> bytes:
    """Serialises as ``tritonclient.utils.serialize_byte_tensor`` does."""
    encoded = [element.encode() if isinstance(element, str) else element for element in elements]
    return b"".join(struct.pack("<I", len(element)) + element for element in encoded)


def parameter(value: Any) -> pb.InferParameter:
    """Wraps a value as ``tritonclient`` does."""
    for kind, field in ((bool, "bool_param"), (int, "int64_param"), (str, "string_param")):
        if isinstance(value, kind):
            return pb.InferParameter(**{field: value})
    return pb.InferParameter(double_param=value)


def ask(
    users: Sequence[str | bytes],
    *,
    model: str = "sasrec",
    history: Sequence[Sequence[str]] | None = None,
    raw: bool = True,
    outputs: Mapping[str, Mapping[str, Any]] | None = None,
    **fields: Any,
) -> pb.ModelInferRequest:
    """Returns a request for ``users``; other keywords are fields of the message or request parameters."""
    own = {name: fields.pop(name) for name in ("id", "model_version") if name in fields}
    message = pb.ModelInferRequest(
        model_name=model, parameters={name: parameter(value) for name, value in fields.items()}, **own
    )
    tensors: list[tuple[str, list[int], list[str | bytes]]] = [("user_id", [len(users), 1], list(users))]
    if history is not None:
        width = max(map(len, history))
        padded = [item for row in history for item in [*row, *[""] * (width - len(row))]]
        tensors.append(("history", [len(history), width], padded))
    for name, shape, elements in tensors:
        tensor = message.inputs.add(name=name, datatype="BYTES", shape=shape)
        if raw:
            message.raw_input_contents.append(raw_bytes(elements))
        else:
            tensor.contents.bytes_contents.extend(
                element.encode() if isinstance(element, str) else element for element in elements
            )
    for name, values in (outputs or {}).items():
        message.outputs.add(name=name, parameters={key: parameter(value) for key, value in values.items()})
    return message


def as_numpy(reply: pb.ModelInferResponse, name: str) -> NDArray[Any]:
    """Reads an output as ``tritonclient``'s ``InferResult.as_numpy`` does."""
    assert len(reply.raw_output_contents) == len(reply.outputs)
    for output, raw in zip(reply.outputs, reply.raw_output_contents, strict=True):
        if output.name == name:
            if output.datatype == "FP32":
                return np.frombuffer(raw, "<f4").reshape(tuple(output.shape))
            assert output.datatype == "BYTES"
            elements, at = [], 0
            while at < len(raw):
                [size] = struct.unpack_from("<I", raw, at)
                elements.append(raw[at + 4 : at + 4 + size].decode())
                at += 4 + size
            return np.array(elements, object).reshape(tuple(output.shape))
    raise AssertionError(f"no output {name}")
