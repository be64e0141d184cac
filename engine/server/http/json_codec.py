"""JSON ↔ messages by protobuf's own mapping, with refusals that name the field and never a value."""

import difflib
import json
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from recserve.errors import MalformedRequest

# Far above any message of the API, far below the interpreter's recursion limit.
MAX_DEPTH = 50
_WHOLE = (
    FieldDescriptor.CPPTYPE_INT32,
    FieldDescriptor.CPPTYPE_INT64,
    FieldDescriptor.CPPTYPE_UINT32,
    FieldDescriptor.CPPTYPE_UINT64,
)
_WORDS = {
    **dict.fromkeys(_WHOLE, "a whole number in its range"),
    FieldDescriptor.CPPTYPE_FLOAT: "a finite number",
    FieldDescriptor.CPPTYPE_DOUBLE: "a finite number",
    FieldDescriptor.CPPTYPE_BOOL: "true or false",
    FieldDescriptor.CPPTYPE_STRING: "valid text",
    FieldDescriptor.CPPTYPE_ENUM: "the name of a value",
}


def message_from_json(kind: Any, data: bytes) -> Any:
    """Reads one message of class ``kind``; raises :class:`MalformedRequest` naming the first wrong field.

    Names are those of the .proto file or their camelCase. An empty body is an empty message. Strict: no
    unknown or repeated keys, no NaN, UTF-8 only.
    """
    value = _parse(data) if data.strip() else {}
    if not isinstance(value, dict):
        raise MalformedRequest("request", found=_kind_of(value), expected="a JSON object")
    try:
        return json_format.ParseDict(value, kind(), max_recursion_depth=MAX_DEPTH)
    except (json_format.ParseError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise _refusal(kind, value) from error


def message_to_json(message: Any) -> bytes:
    """Writes a message: camelCase names, lists and numbers also when empty or zero."""
    value = json_format.MessageToDict(message, always_print_fields_with_no_presence=True)
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def _parse(data: bytes) -> Any:
    try:
        return json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_no_number)
    except MalformedRequest:
        raise
    except (ValueError, RecursionError) as error:
        raise MalformedRequest("request", found="not JSON", expected="a JSON object in UTF-8") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise MalformedRequest("request", found="an object with a repeated key", expected="each key once")
    return value


def _no_number(name: str) -> Any:
    raise MalformedRequest("request", found=f"with the number {name}", expected="finite numbers")


def _refusal(kind: Any, value: dict[str, Any]) -> MalformedRequest:
    """Looks for the field that is to blame; slower than parsing, and only after that has failed."""
    names = _names(kind.DESCRIPTOR)
    for key in value:
        if key not in names:
            close = difflib.get_close_matches(key, names, n=1)
            cure = (
                f"Did you mean {close[0]!r}?"
                if close
                else f"Known: {', '.join(sorted(set(names.values())))}."
            )
            return MalformedRequest(
                key, found="not a field", expected=f"a field of {kind.DESCRIPTOR.name}", cure=cure
            )
    for key in value:
        try:
            json_format.ParseDict({key: value[key]}, kind(), max_recursion_depth=MAX_DEPTH)
        except (json_format.ParseError, ValueError, TypeError, AttributeError, RecursionError):
            field = kind.DESCRIPTOR.fields_by_name[names[key]]
            return MalformedRequest(names[key], found=_kind_of(value[key]), expected=_expected(field))
    return MalformedRequest(
        "request", found="no valid message", expected=f"the JSON of {kind.DESCRIPTOR.full_name}"
    )


def _names(descriptor: Descriptor) -> dict[str, str]:
    """Returns the accepted keys and the field that each stands for."""
    return {name: field.name for field in descriptor.fields for name in (field.name, field.json_name)}


def _kind_of(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _expected(field: FieldDescriptor) -> str:
    """Says in words what JSON a field takes."""
    if field.message_type is None:
        word = _WORDS[field.cpp_type]
    elif field.message_type.GetOptions().map_entry:
        value = field.message_type.fields_by_name["value"]
        return f"an object, each value {_WORDS.get(value.cpp_type, 'an object')}"
    else:
        word = f"a valid {field.message_type.name}"
    return f"a list, each {word}" if field.is_repeated else word
