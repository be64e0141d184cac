"""Tensors of BYTES: byte strings, row by row; raw: each after its length in 4 bytes, little-endian."""

from collections.abc import Sequence
from typing import Any

from recserve.errors import InvalidRequest, Unsupported
from recserve.proto import open_inference_pb2 as pb

BYTES = "BYTES"
LENGTH_BYTES = 4
EMPTY_ELEMENT = bytes(LENGTH_BYTES)
SHARED_MEMORY = "shared_memory_region"


def check_no_shared_memory(name: str, parameters: Any) -> None:
    """Raises :class:`Unsupported` when a tensor lies in shared memory."""
    if SHARED_MEMORY in parameters:
        raise Unsupported(
            f"tensor {name}", found="in shared memory", expected="in the message", cure="Send its contents."
        )


def read_elements(tensor: pb.ModelInferRequest.InferInputTensor, raw: bytes | None) -> list[bytes]:
    """Returns the elements of an input of shape (n, length); ``raw`` None: they are in its ``contents``.

    Raises :class:`InvalidRequest` when datatype, shape and contents do not belong together.
    """
    name = f"input {tensor.name}"
    check_no_shared_memory(tensor.name, tensor.parameters)
    if tensor.datatype != BYTES:
        raise InvalidRequest(f"datatype of {name}", found=tensor.datatype, expected=BYTES)
    shape = list(tensor.shape)
    if len(shape) != 2 or min(shape) < 0:
        raise InvalidRequest(f"shape of {name}", found=shape, expected="[rows, elements]")
    if raw is None:
        elements = list(tensor.contents.bytes_contents)
    elif tensor.HasField("contents"):
        raise InvalidRequest(
            f"contents of {name}", found="given next to raw_input_contents", expected="one of the two"
        )
    else:
        elements = _split(name, raw)
    if len(elements) != shape[0] * shape[1]:
        raise InvalidRequest(
            f"number of elements of {name}", found=len(elements), expected=f"that of its shape {shape}"
        )
    return elements


def text_of(name: str, element: bytes) -> str:
    """Returns an element as text; raises :class:`InvalidRequest` when it is not UTF-8."""
    try:
        return element.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(name, found="not UTF-8", expected="UTF-8") from error


def join_elements(rows: Sequence[Sequence[bytes]], width: int) -> bytes:
    """Returns the raw contents of a tensor (rows, width); shorter rows end in empty elements."""
    parts: list[bytes] = []
    for row in rows:
        for element in row:
            parts += (len(element).to_bytes(LENGTH_BYTES, "little"), element)
        parts.append(EMPTY_ELEMENT * (width - len(row)))
    return b"".join(parts)


def _split(name: str, raw: bytes) -> list[bytes]:
    elements = []
    at, end = 0, len(raw)
    while at < end:
        start = at + LENGTH_BYTES
        at = start + int.from_bytes(raw[at:start], "little")
        if start > end or at > end:
            raise InvalidRequest(
                f"raw contents of {name}",
                found="cut short",
                expected="elements, each after its length in 4 bytes",
            )
        elements.append(raw[start:at])
    return elements
