"""The status table in HTTP's words: codes of google.rpc.Code, and what HTTP itself refuses."""

from http import HTTPStatus

import grpc
from google.protobuf import json_format
from google.rpc import status_pb2

from recserve.engine.wire.status import grpc_code, make_status, reason_in, retry_after_of, status_of
from recserve.errors import MessageTooLarge

# https://github.com/googleapis/googleapis/blob/master/google/rpc/code.proto
HTTP_CODES: dict[grpc.StatusCode, int] = {
    grpc.StatusCode.OK: 200,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.UNKNOWN: 500,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DATA_LOSS: 500,
}
TOO_LARGE_REASON = "MESSAGE_TOO_LARGE"


def http_code(status: status_pb2.Status) -> int:
    """Returns the HTTP status of a rich status."""
    if reason_in(status) == TOO_LARGE_REASON:
        return HTTPStatus.REQUEST_ENTITY_TOO_LARGE  # 429 would say "again, later".
    return HTTP_CODES[grpc_code(status)]


def retry_after(status: status_pb2.Status) -> int | None:
    """Returns the seconds of ``Retry-After``, rounded up; None when trying again does not help."""
    seconds = retry_after_of(status)
    return None if seconds is None else max(1, int(-(-seconds // 1)))


def status_json(status: status_pb2.Status) -> str:
    """Returns a rich status as JSON: code, message, details by type."""
    return json_format.MessageToJson(status, indent=None)


def too_large(found: str, limit: int) -> status_pb2.Status:
    """Returns the refusal of a body over the limit."""
    return status_of(MessageTooLarge("request", found=found, expected=f"at most {limit} bytes"))


# What never reaches the chain: HTTP status, and the gRPC code and reason of the body.
ROUTE_REFUSALS: dict[int, tuple[grpc.StatusCode, str]] = {
    400: (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_HEADER"),
    404: (grpc.StatusCode.NOT_FOUND, "UNKNOWN_ROUTE"),
    405: (grpc.StatusCode.UNIMPLEMENTED, "METHOD_NOT_ALLOWED"),
    408: (grpc.StatusCode.DEADLINE_EXCEEDED, "BODY_TIMEOUT"),
    415: (grpc.StatusCode.INVALID_ARGUMENT, "UNSUPPORTED_CONTENT_TYPE"),
}


def refusal_status(code: int, sentence: str) -> status_pb2.Status:
    """Returns the body of a refusal by HTTP itself."""
    grpc_status, reason = ROUTE_REFUSALS[code]
    return make_status(grpc_status, reason, sentence)
