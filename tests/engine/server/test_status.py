"""Every row of the status table over real gRPC, with the details that a program reads."""

from collections.abc import Callable

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from recserve.engine import Engine, Request
from recserve.engine.client import RecommenderClient
from recserve.engine.wire.status import DETAILS_KEY, STATUS_TABLE, RemoteError
from recserve.errors import CheckFailed, RecserveError
from recserve.proto import recommender_pb2 as pb
from recserve.proto import recommender_pb2_grpc
from tests.engine.server.conftest import RunningServer
from tests.engine.server.local import new_error

TIMEOUT_SECONDS = 30


def details_of(status: status_pb2.Status, kind: Callable[[], any_pb2.Any]) -> list[any_pb2.Any]:
    found = []
    for packed in status.details:
        detail = kind()
        if packed.Unpack(detail):
            found.append(detail)
    return found


@pytest.mark.parametrize("kind", STATUS_TABLE, ids=lambda kind: kind.__name__)
def test_every_row_of_the_table_reaches_the_caller(
    server: RunningServer, engine: Engine, monkeypatch: pytest.MonkeyPatch, kind: type[RecserveError]
) -> None:
    row = STATUS_TABLE[kind]
    raised = new_error(kind)

    def fail(requests: list[Request], **options: bool) -> None:
        raise raised

    monkeypatch.setattr(engine, "rank_each", fail)
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as caught:
        recommender_pb2_grpc.RecommenderStub(channel).Recommend(
            pb.RecommendRequest(), timeout=TIMEOUT_SECONDS
        )
    error = caught.value
    status = status_pb2.Status.FromString(dict(error.trailing_metadata())[DETAILS_KEY])
    assert error.code() is row.code
    assert status.code == row.code.value[0]
    assert status.message == error.details() == "the name is wrong; expected right."
    [info] = details_of(status, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain) == (str(getattr(raised, "reason", row.reason)), "recserve")
    assert dict(info.metadata) == {"found": "wrong", "expected": "right"}
    missing = details_of(status, error_details_pb2.ResourceInfo)
    assert [(one.resource_type, one.resource_name) for one in missing] == (
        [("the name", "wrong")] if row.code is grpc.StatusCode.NOT_FOUND else []
    )
    failures = details_of(status, error_details_pb2.PreconditionFailure)
    assert [(one.type, one.subject) for failure in failures for one in failure.violations] == (
        [(info.reason, "the name")] if row.code is grpc.StatusCode.FAILED_PRECONDITION else []
    )
    pauses = details_of(status, error_details_pb2.RetryInfo)
    assert [pause.retry_delay.seconds > 0 for pause in pauses] == [True] * row.retry
    violations = [
        violation.field
        for bad in details_of(status, error_details_pb2.BadRequest)
        for violation in bad.field_violations
    ]
    assert violations == (["the name"] if row.code is grpc.StatusCode.INVALID_ARGUMENT else [])


def test_codes_are_those_that_the_api_documents() -> None:
    assert {kind.__name__: (row.code.name, row.retry) for kind, row in STATUS_TABLE.items()} == {
        "MalformedRequest": ("INVALID_ARGUMENT", False),
        "UnknownItem": ("NOT_FOUND", False),
        "Unsupported": ("UNIMPLEMENTED", False),
        "InvalidRequest": ("INVALID_ARGUMENT", False),
        "UnknownModel": ("NOT_FOUND", False),
        "UnknownService": ("NOT_FOUND", False),
        "AlreadyRecorded": ("ALREADY_EXISTS", False),
        "StorageFull": ("RESOURCE_EXHAUSTED", False),
        "StorageFailed": ("UNAVAILABLE", False),
        "UserErased": ("FAILED_PRECONDITION", False),
        "Conflict": ("ABORTED", False),
        "MessageTooLarge": ("RESOURCE_EXHAUSTED", False),
        "Unauthenticated": ("UNAUTHENTICATED", False),
        "PermissionDenied": ("PERMISSION_DENIED", False),
        "RateLimited": ("RESOURCE_EXHAUSTED", True),
        "Overloaded": ("RESOURCE_EXHAUSTED", True),
        "DeadlineExceeded": ("DEADLINE_EXCEEDED", False),
        "Unavailable": ("UNAVAILABLE", True),
        "BundleInvalid": ("FAILED_PRECONDITION", False),
        "ConfigError": ("FAILED_PRECONDITION", False),
    }


@pytest.mark.parametrize(
    "error",
    [TimeoutError("/secret"), KeyError("/secret"), CheckFailed("/secret", found="/secret", expected="x")],
    ids=lambda error: type(error).__name__,
)
def test_what_is_not_in_the_table_is_internal_and_says_nothing(
    server: RunningServer, engine: Engine, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    # TimeoutError: the engine's own is no deadline of the caller.
    def fail(requests: list[Request], **options: bool) -> None:
        raise error

    monkeypatch.setattr(engine, "rank_each", fail)
    client = RecommenderClient(server.address, timeout=TIMEOUT_SECONDS)
    with client, pytest.raises(RemoteError) as caught:
        client.recommend(Request())
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert "secret" not in str(caught.value)
