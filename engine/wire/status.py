"""The one table between errors and gRPC statuses, with google.rpc details, read in both directions.

A refusal of ours carries ``google.rpc.Status`` in its trailer: exactly one ``ErrorInfo`` with a reason of
the table below and domain "recserve", with what was found and expected as metadata; ``BadRequest`` where a
field is to blame, ``ResourceInfo`` where something is not there, ``PreconditionFailure`` where a state does
not allow it, ``RetryInfo`` where trying again helps and ``QuotaFailure`` where the limit is the caller's own.
What the gRPC core refuses itself (a message over the limit, an unknown method) has none.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2

from recserve.errors import (
    AlreadyRecorded,
    BundleInvalid,
    ConfigError,
    Conflict,
    DeadlineExceeded,
    InvalidRequest,
    MalformedRequest,
    MessageTooLarge,
    Overloaded,
    PermissionDenied,
    RateLimited,
    RecserveError,
    StorageFailed,
    StorageFull,
    Unauthenticated,
    Unavailable,
    UnknownItem,
    UnknownModel,
    UnknownService,
    Unsupported,
    UserErased,
)

DOMAIN = "recserve"
DETAILS_KEY = "grpc-status-details-bin"
# https://github.com/grpc/proposal/blob/master/A6-client-retries.md#pushback
PUSHBACK_KEY = "grpc-retry-pushback-ms"
RETRY_AFTER_SECONDS = 1
REASON_INTERNAL = "INTERNAL"
NO_METADATA: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class StatusRow:
    """One row of the table: the gRPC code and the closed, documented reason.

    A refused bundle has a closer one, of :class:`recserve.errors.BundleReason`.
    """

    code: grpc.StatusCode
    reason: str
    retry: bool = False


# The first row whose class matches wins: subclasses stand before their bases.
STATUS_TABLE: dict[type[RecserveError], StatusRow] = {
    MalformedRequest: StatusRow(grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST"),
    UnknownItem: StatusRow(grpc.StatusCode.NOT_FOUND, "UNKNOWN_ITEM"),
    UnknownModel: StatusRow(grpc.StatusCode.NOT_FOUND, "UNKNOWN_MODEL"),
    AlreadyRecorded: StatusRow(grpc.StatusCode.ALREADY_EXISTS, "ALREADY_RECORDED"),
    InvalidRequest: StatusRow(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
    UnknownService: StatusRow(grpc.StatusCode.NOT_FOUND, "UNKNOWN_SERVICE"),
    Unsupported: StatusRow(grpc.StatusCode.UNIMPLEMENTED, "UNSUPPORTED"),
    MessageTooLarge: StatusRow(grpc.StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE"),
    Unauthenticated: StatusRow(grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"),
    PermissionDenied: StatusRow(grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED"),
    RateLimited: StatusRow(grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED", retry=True),
    Overloaded: StatusRow(grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", retry=True),
    DeadlineExceeded: StatusRow(grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"),
    Unavailable: StatusRow(grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE", retry=True),
    StorageFull: StatusRow(grpc.StatusCode.RESOURCE_EXHAUSTED, "STORAGE_FULL"),
    StorageFailed: StatusRow(grpc.StatusCode.UNAVAILABLE, "STORAGE_FAILED"),
    UserErased: StatusRow(grpc.StatusCode.FAILED_PRECONDITION, "USER_ERASED"),
    Conflict: StatusRow(grpc.StatusCode.ABORTED, "CONFLICT"),
    BundleInvalid: StatusRow(grpc.StatusCode.FAILED_PRECONDITION, "BUNDLE_INVALID"),
    ConfigError: StatusRow(grpc.StatusCode.FAILED_PRECONDITION, "CONFIGURATION"),
}


def code_number(code: grpc.StatusCode) -> int:
    """Returns the wire number of a gRPC code."""
    return int(code.value[0])


def row_of(kind: type[BaseException]) -> StatusRow | None:
    """Returns the row of an error's class, None for what is not in the table (INTERNAL)."""
    return next((row for known, row in STATUS_TABLE.items() if issubclass(kind, known)), None)


def reason_of(kind: type[BaseException]) -> str:
    """Returns the reason of an error's class."""
    row = row_of(kind)
    return row.reason if row is not None else REASON_INTERNAL


def reason_for(error: BaseException) -> str:
    """Returns the reason of an error: that of its class, or its own where it brings one."""
    return str(error.reason) if isinstance(error, BundleInvalid) else reason_of(type(error))


def status_of(error: RecserveError) -> status_pb2.Status:
    """Returns the rich status of one of our errors; its message is the error's own sentence."""
    row = row_of(type(error))
    if row is None:
        return make_status(grpc.StatusCode.INTERNAL, REASON_INTERNAL, "The server failed; see its log.")
    status = make_status(
        row.code,
        reason_for(error),
        str(error),
        field=error.name,
        metadata={"found": error.found, "expected": error.expected},
    )
    if row.code is grpc.StatusCode.NOT_FOUND:
        missing = error_details_pb2.ResourceInfo(resource_type=error.name, resource_name=error.found)
        status.details.append(_pack(missing))
    elif row.code is grpc.StatusCode.FAILED_PRECONDITION:
        violated = error_details_pb2.PreconditionFailure.Violation(
            type=reason_for(error), subject=error.name, description=str(error)
        )
        status.details.append(_pack(error_details_pb2.PreconditionFailure(violations=[violated])))
    if row.retry:
        delay = duration_pb2.Duration(seconds=RETRY_AFTER_SECONDS)
        if isinstance(error, RateLimited):
            delay.FromMicroseconds(max(1, int(error.retry_after * 1e6)))
            quota = error_details_pb2.QuotaFailure.Violation(subject="caller", description=str(error))
            status.details.append(_pack(error_details_pb2.QuotaFailure(violations=[quota])))
        status.details.append(_pack(error_details_pb2.RetryInfo(retry_delay=delay)))
    return status


def make_status(
    code: grpc.StatusCode,
    reason: str,
    message: str,
    *,
    field: str = "",
    metadata: Mapping[str, str] = NO_METADATA,
) -> status_pb2.Status:
    """Returns a rich status with one ErrorInfo, and a BadRequest naming ``field`` for INVALID_ARGUMENT."""
    status = status_pb2.Status(code=code_number(code), message=message)
    info = error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata)
    status.details.append(_pack(info))
    if code is grpc.StatusCode.INVALID_ARGUMENT and field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=message)
        status.details.append(_pack(error_details_pb2.BadRequest(field_violations=[violation])))
    return status


def trailer_of(status: status_pb2.Status) -> tuple[tuple[str, bytes], ...]:
    """Returns the trailing metadata that carries ``status``."""
    return ((DETAILS_KEY, status.SerializeToString()),)


def pushback_of(status: status_pb2.Status) -> tuple[tuple[str, str], ...]:
    """Returns trailing metadata with the pause of ``status``, for callers whose gRPC tries again itself."""
    pause = retry_after_of(status)
    return () if pause is None else ((PUSHBACK_KEY, str(math.ceil(pause * 1000))),)


def grpc_code(status: status_pb2.Status) -> grpc.StatusCode:
    """Returns the gRPC code of a rich status."""
    return next(code for code in grpc.StatusCode if code_number(code) == status.code)


class RemoteError(RecserveError):
    """A server answered with an error; ``code`` is the gRPC code, ``reason`` the server's closed reason.

    ``retry_after``: seconds that the server asks to wait before another try, None when it asks for none.
    """

    def __init__(
        self, code: grpc.StatusCode, reason: str, message: str, retry_after: float | None = None
    ) -> None:
        super().__init__("reply", found=code.name, expected="OK", cure=message)
        self.code = code
        self.reason = reason
        self.message = message
        self.retry_after = retry_after
        # The server's sentence is complete; the frame around it would only repeat the code.
        self.args = (f"{message} ({code.name})",)
        if code is grpc.StatusCode.UNAVAILABLE:
            self.exit_code = Unavailable.exit_code  # type: ignore[misc]
        elif code is grpc.StatusCode.INVALID_ARGUMENT:
            self.exit_code = InvalidRequest.exit_code  # type: ignore[misc]


def error_from_status(status: status_pb2.Status) -> RemoteError:
    """Returns the error that a rich status stands for."""
    return RemoteError(grpc_code(status), reason_in(status), status.message, retry_after_of(status))


def reason_in(status: status_pb2.Status) -> str:
    """Returns the reason that a rich status carries, "" for none."""
    info = error_details_pb2.ErrorInfo()
    return next((info.reason for detail in status.details if detail.Unpack(info)), "")


def retry_after_of(status: status_pb2.Status) -> float | None:
    """Returns the seconds of the status's RetryInfo, None when it has none."""
    pause = error_details_pb2.RetryInfo()
    for detail in status.details:
        if detail.Unpack(pause):
            return float(pause.retry_delay.seconds + pause.retry_delay.nanos / 1e9)
    return None


def error_from_call(call: grpc.RpcError) -> RemoteError:
    """Returns the error that a failed call stands for, with the server's reason where it sent one."""
    for key, value in call.trailing_metadata() or ():
        if key == DETAILS_KEY:
            try:
                return error_from_status(status_pb2.Status.FromString(value))
            except DecodeError:
                break  # Not one of our servers: its code and text below are all there is.
    if call.code() is grpc.StatusCode.UNAVAILABLE:
        # Nobody answered: the core's own words name its internals.
        return RemoteError(call.code(), "", "the server is not reachable")
    return RemoteError(call.code(), "", call.details() or code_pb2.Code.Name(code_number(call.code())))


def _pack(message: object) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)  # type: ignore[arg-type]
    return packed
