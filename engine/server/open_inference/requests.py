"""ModelInferRequest → what is asked."""

import json
from dataclasses import dataclass
from typing import Any

from recserve.engine.batch_policy import PRIORITIES
from recserve.engine.server.methods import INTERACTIVE
from recserve.engine.server.open_inference.tensors import check_no_shared_memory, read_elements, text_of
from recserve.engine.types import DEFAULT_K, Request
from recserve.errors import InvalidRequest
from recserve.proto import open_inference_pb2 as pb

USER_ID = "user_id"
HISTORY = "history"
ITEM_ID = "item_id"
SCORE = "score"
INPUTS = (USER_ID, HISTORY)
OUTPUTS = (ITEM_ID, SCORE)
# Triton counts priorities from 1, the most urgent; 0 means the default.
DEFAULT_PRIORITY = INTERACTIVE + 1


@dataclass(frozen=True, slots=True)
class Output:
    """One wanted tensor; ``classification``: how many "score:position:item_id" per row instead, 0: none."""

    name: str
    classification: int = 0


@dataclass(frozen=True, slots=True)
class Ask:
    """What a ModelInfer call wants: one request per row, and the tensors of the answer.

    ``priority`` is the batcher's (0 the most urgent); ``timeout_seconds`` infinite when there is none.
    """

    requests: list[Request]
    outputs: list[Output]
    k: int
    priority: int
    timeout_seconds: float


def read_infer(message: pb.ModelInferRequest, max_rows: int) -> Ask:
    """Reads a message; raises :class:`InvalidRequest` for what is not a request, whatever its values.

    The values are checked by the engine, row by row.
    """
    inputs = _read_inputs(message, max_rows)
    outputs = _read_outputs(message)
    parameters = message.parameters
    k = _parameter(parameters, "k", int, DEFAULT_K)
    exclude = _ids(_parameter(parameters, "exclude", str, ""))
    include_seen = _parameter(parameters, "include_seen", bool, False)
    variant = _parameter(parameters, "variant", str, "")
    histories = inputs.get(HISTORY)
    requests = [
        Request(
            user_id=user_id,
            k=k,
            history=(histories[row] or None) if histories is not None else None,
            exclude=exclude,
            variant=variant,
            include_seen=include_seen,
        )
        for row, [user_id] in enumerate(inputs[USER_ID])
    ]
    return Ask(requests, outputs, k, _priority(parameters), _timeout_seconds(parameters))


def _read_inputs(message: pb.ModelInferRequest, max_rows: int) -> dict[str, list[list[str]]]:
    """Returns the texts of each row of each input."""
    raw = list(message.raw_input_contents)
    if raw and len(raw) != len(message.inputs):
        raise InvalidRequest(
            "number of raw_input_contents", found=len(raw), expected=f"one per input ({len(message.inputs)})"
        )
    inputs: dict[str, list[list[str]]] = {}
    for i, tensor in enumerate(message.inputs):
        if tensor.name not in INPUTS or tensor.name in inputs:
            raise InvalidRequest(
                f"inputs[{i}]", found=tensor.name, expected=f"{USER_ID} and optionally {HISTORY}, once each"
            )
        elements = read_elements(tensor, raw[i] if raw else None)
        n_rows, width = tensor.shape
        if not 1 <= n_rows <= max_rows:
            raise InvalidRequest(f"batch of input {tensor.name}", found=n_rows, expected=f"1 to {max_rows}")
        if tensor.name == USER_ID and width != 1:
            raise InvalidRequest(f"shape of input {USER_ID}", found=[n_rows, width], expected="[rows, 1]")
        inputs[tensor.name] = [
            _texts(tensor.name, row, elements[row * width : (row + 1) * width]) for row in range(n_rows)
        ]
    if USER_ID not in inputs:
        raise InvalidRequest("inputs", found=f"without {USER_ID}", expected=f"{USER_ID} BYTES [rows, 1]")
    if len(inputs.get(HISTORY, inputs[USER_ID])) != len(inputs[USER_ID]):
        raise InvalidRequest(
            f"batch of input {HISTORY}",
            found=len(inputs[HISTORY]),
            expected=f"that of {USER_ID} ({len(inputs[USER_ID])})",
        )
    return inputs


def _texts(name: str, row: int, elements: list[bytes]) -> list[str]:
    if name == HISTORY:
        elements = [element for element in elements if element]
    return [text_of(f"row {row}: {name}", element) for element in elements]


def _read_outputs(message: pb.ModelInferRequest) -> list[Output]:
    outputs: list[Output] = []
    for i, wanted in enumerate(message.outputs):
        check_no_shared_memory(wanted.name, wanted.parameters)
        if wanted.name not in OUTPUTS or wanted.name in [output.name for output in outputs]:
            raise InvalidRequest(
                f"outputs[{i}]", found=wanted.name, expected=f"{ITEM_ID} or {SCORE}, once each"
            )
        n = _parameter(wanted.parameters, "classification", int, 0)
        if "classification" in wanted.parameters and (n < 1 or wanted.name != SCORE):
            raise InvalidRequest(
                f"classification of output {wanted.name}", found=n, expected=f"1 or more, of {SCORE}"
            )
        outputs.append(Output(wanted.name, n))
    return outputs or [Output(name) for name in OUTPUTS]


_CHOICES = {int: ("int64_param", "uint64_param"), str: ("string_param",), bool: ("bool_param",)}


def _parameter(parameters: Any, name: str, kind: type, default: Any) -> Any:
    """Returns a parameter's value; raises :class:`InvalidRequest` when it is of another kind."""
    if name not in parameters:
        return default
    choice = parameters[name].WhichOneof("parameter_choice")
    if choice not in _CHOICES[kind]:
        raise InvalidRequest(
            f"parameter {name}", found=choice or "empty", expected=" or ".join(_CHOICES[kind])
        )
    return getattr(parameters[name], choice)


def _ids(text: str) -> list[str]:
    if not text.startswith("["):
        return text.split(",") if text else []
    try:
        ids = json.loads(text)
    except (ValueError, RecursionError):
        ids = None
    if not isinstance(ids, list) or not all(isinstance(id_, str) for id_ in ids):
        raise InvalidRequest(
            "parameter exclude", found=text, expected="item ids separated by commas, or a JSON list of them"
        )
    return ids


def _priority(parameters: Any) -> int:
    level = _parameter(parameters, "priority", int, 0)
    # As Triton does: a level that does not exist is the default.
    return int(level if 1 <= level <= PRIORITIES else DEFAULT_PRIORITY) - 1


def _timeout_seconds(parameters: Any) -> float:
    microseconds = _parameter(parameters, "timeout", int, 0)
    if microseconds < 0:
        raise InvalidRequest("parameter timeout", found=microseconds, expected="0 or more microseconds")
    return microseconds / 1e6 if microseconds else float("inf")
