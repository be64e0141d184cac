"""Asks any method of the table with any credentials, and says what became of it."""

from collections.abc import Sequence
from typing import Any

import grpc

from recserve.engine.credentials import Credentials
from recserve.engine.server.methods import Method, Shape
from recserve.engine.wire.status import error_from_call

TIMEOUT_SECONDS = 30
ALLOWED, NO_CONNECTION = "allowed", "no connection"


def open_channel(address: str, credentials: Credentials) -> Any:
    tls = credentials.channel()
    if tls is None:
        return grpc.insecure_channel(address)
    return grpc.secure_channel(address, tls, credentials.options())


def outcome(channel: Any, method: Method, metadata: Sequence[tuple[str, str]] = (), data: bytes = b"") -> str:
    """Returns "allowed", "no connection", or the code of the refusal; ``data``: of a unary request."""
    try:
        _ask(channel, method, metadata, data)
    except grpc.RpcError as error:
        refusal = error_from_call(error)
        if refusal.code is grpc.StatusCode.UNIMPLEMENTED:
            return "UNIMPLEMENTED"
        if refusal.reason in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
            assert refusal.reason == refusal.code.name
            return refusal.reason
        # Let in, and refused for another reason (a server that is loading), or never answered by it.
        return ALLOWED if refusal.reason else NO_CONNECTION
    return ALLOWED


def _ask(channel: Any, method: Method, metadata: Sequence[tuple[str, str]], data: bytes) -> None:
    settings: dict[str, Any] = {"timeout": TIMEOUT_SECONDS, "metadata": metadata}
    if method.shape is Shape.UNARY:
        channel.unary_unary(method.path)(data, **settings)
    elif method.shape is Shape.SERVER_STREAM:
        answers = channel.unary_stream(method.path)(b"", **settings)
        next(answers)
        answers.cancel()
    else:
        assert method.shape is Shape.BIDIRECTIONAL, "teach the matrix this shape"
        list(channel.stream_stream(method.path)(iter([b""]), **settings))
