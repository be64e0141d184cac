"""The OpenAPI 3.1 document of the gateway, made from the method table and its protobuf descriptors."""

import importlib.resources
import json
from collections.abc import Iterable
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.rpc import status_pb2

import recserve
from recserve.engine.server.call import REQUEST_ID_HEADER
from recserve.engine.server.http.gateway import DEADLINE_HEADER, TIMEOUT_HEADER
from recserve.engine.server.http.site import JSON
from recserve.engine.server.methods import Method

REFERENCE = "#/components/schemas/"
DESCRIPTION = (
    "The JSON form of the gRPC API: protobuf's JSON mapping. Names are also taken as in the .proto file. "
    "A refusal is a google.rpc.Status whose ErrorInfo has one of the documented reasons."
)
# The JSON of a well-known type is not that of its fields.
WELL_KNOWN: dict[str, dict[str, Any]] = {
    "google.protobuf.Any": {
        "type": "object",
        "properties": {"@type": {"type": "string"}},
        "required": ["@type"],
        "additionalProperties": True,
    },
    "google.protobuf.Struct": {"type": "object", "additionalProperties": True},
    "google.protobuf.Value": {},
    "google.protobuf.ListValue": {"type": "array", "items": {}},
    "google.protobuf.Duration": {"type": "string", "pattern": "s$"},
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Empty": {"type": "object"},
}
SCALARS: dict[int, dict[str, Any]] = {
    FieldDescriptor.CPPTYPE_INT32: {"type": "integer", "format": "int32"},
    FieldDescriptor.CPPTYPE_UINT32: {"type": "integer", "format": "int64", "minimum": 0},
    # JavaScript's numbers end at 2**53: the mapping writes 64 bits as text, and takes both.
    FieldDescriptor.CPPTYPE_INT64: {"type": ["string", "integer"], "format": "int64"},
    FieldDescriptor.CPPTYPE_UINT64: {"type": ["string", "integer"], "format": "uint64"},
    FieldDescriptor.CPPTYPE_FLOAT: {"type": "number", "format": "float"},
    FieldDescriptor.CPPTYPE_DOUBLE: {"type": "number", "format": "double"},
    FieldDescriptor.CPPTYPE_BOOL: {"type": "boolean"},
}


@cache
def comments() -> dict[str, str]:
    """Returns the comments of our .proto files by full name."""
    text = importlib.resources.files("recserve.proto").joinpath("comments.json").read_text(encoding="utf-8")
    return {str(name): str(comment) for name, comment in json.loads(text).items()}


def comment_of(name: str) -> str:
    """Returns the comment of a message, field or method, "" for none."""
    return comments().get(name, "")


def method_name(method: Method) -> str:
    """Returns "package.Service.Name"."""
    return method.path[1:].replace("/", ".")


def openapi(methods: Iterable[Method]) -> dict[str, Any]:
    """Returns the document for the methods that are routes."""
    routes = [method for method in methods if method.http]
    asked = _reachable(method.request.DESCRIPTOR for method in routes)
    answered = _reachable([method.response.DESCRIPTOR for method in routes] + [status_pb2.Status.DESCRIPTOR])
    schemas = {
        # What an answer always has, a request may leave out.
        name: _message(descriptor, complete=name not in asked)
        for name, descriptor in sorted({**asked, **answered}.items())
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "recserve",
            "version": recserve.__version__,
            "description": DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": {method.http: {"post": _operation(method)} for method in routes},
        "components": {"schemas": schemas, "parameters": _parameters(), "responses": _refused()},
    }


def _operation(method: Method) -> dict[str, Any]:
    service, _, name = method_name(method).rpartition(".")
    return {
        "operationId": name[:1].lower() + name[1:],
        "summary": comment_of(method_name(method)) or name,
        "tags": [service],
        "parameters": [{"$ref": f"#/components/parameters/{name}"} for name in _parameters()],
        "requestBody": {
            "required": True,
            "content": {JSON: {"schema": {"$ref": REFERENCE + method.request.DESCRIPTOR.full_name}}},
        },
        "responses": {
            "200": {
                "description": comment_of(method.response.DESCRIPTOR.full_name) or "The answer.",
                "content": {JSON: {"schema": {"$ref": REFERENCE + method.response.DESCRIPTOR.full_name}}},
            },
            "default": {"$ref": "#/components/responses/Refused"},
        },
    }


def _parameters() -> dict[str, Any]:
    rows = {
        DEADLINE_HEADER: ("Milliseconds until the answer is of no use any more.", "[0-9]{1,8}"),
        TIMEOUT_HEADER: ("The same as gRPC writes it: 500m, 2S.", "[0-9]{1,8}[HMSmun]"),
        REQUEST_ID_HEADER: ("Comes back with the answer and stands in the server's log.", "[ -~]{1,64}"),
    }
    return {
        name: {
            "name": name,
            "in": "header",
            "required": False,
            "description": text,
            "schema": {"type": "string", "pattern": f"^{pattern}$"},
        }
        for name, (text, pattern) in rows.items()
    }


def _refused() -> dict[str, Any]:
    schema = {"$ref": REFERENCE + status_pb2.Status.DESCRIPTOR.full_name}
    return {
        "Refused": {
            "description": "Why there is no answer; Retry-After where trying again helps.",
            "headers": {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}},
            "content": {JSON: {"schema": schema}},
        }
    }


def _reachable(roots: Iterable[Descriptor]) -> dict[str, Descriptor]:
    found: dict[str, Descriptor] = {}
    waiting = list(roots)
    while waiting:
        descriptor = waiting.pop()
        if descriptor.full_name in found or descriptor.full_name in WELL_KNOWN:
            continue
        if not descriptor.GetOptions().map_entry:
            found[descriptor.full_name] = descriptor
        waiting += [field.message_type for field in descriptor.fields if field.message_type is not None]
    return found


def _message(descriptor: Descriptor, *, complete: bool) -> dict[str, Any]:
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {field.json_name: _field(field) for field in descriptor.fields},
        "additionalProperties": False,
    }
    required = [field.json_name for field in descriptor.fields if not field.has_presence]
    if complete and required:
        schema["required"] = required
    if text := comment_of(descriptor.full_name):
        schema["description"] = text
    return schema


def _field(field: FieldDescriptor) -> dict[str, Any]:
    message = field.message_type
    if message is not None and message.GetOptions().map_entry:
        schema = {"type": "object", "additionalProperties": _value(message.fields_by_name["value"])}
    elif field.is_repeated:
        schema = {"type": "array", "items": _value(field)}
    else:
        schema = _value(field)
    text = comment_of(field.full_name)
    return {**schema, "description": text} if text else schema


def _value(field: FieldDescriptor) -> dict[str, Any]:
    message = field.message_type
    if message is not None:
        well_known = WELL_KNOWN.get(message.full_name)
        return dict(well_known) if well_known is not None else {"$ref": REFERENCE + message.full_name}
    if field.enum_type is not None:
        return {"type": "string", "enum": [value.name for value in field.enum_type.values]}
    if field.type == FieldDescriptor.TYPE_BYTES:
        return {"type": "string", "contentEncoding": "base64"}
    return dict(SCALARS.get(field.cpp_type, {"type": "string"}))
