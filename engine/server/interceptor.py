"""What every unary call passes: decoding, errors to statuses, and nothing internal on the wire.

grpc.aio answers undecodable bytes with UNKNOWN and sends the text of an unexpected exception to the
caller. Both are replaced here: bytes are decoded inside the handler (INVALID_ARGUMENT when they are not
the message), and what nobody expected becomes INTERNAL with an id that the log has too.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import grpc
import structlog
from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from recserve.engine.wire.status import (
    REASON_INTERNAL,
    REASON_MALFORMED,
    grpc_code,
    make_status,
    status_of,
    trailer_of,
)
from recserve.errors import RecserveError

log = structlog.get_logger("recserve.server")


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Wraps each unary-unary handler; streaming ones (reflection, health Watch) pass unchanged."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        """Returns the handler of the method, wrapped."""
        handler = await continuation(details)
        if handler is None or handler.unary_unary is None:
            return handler
        method, behaviour, decode = details.method, handler.unary_unary, handler.request_deserializer

        async def call(data: bytes, context: grpc.aio.ServicerContext) -> Any:
            try:
                request = decode(data)
            except (DecodeError, ValueError):
                status = make_status(
                    grpc.StatusCode.INVALID_ARGUMENT, REASON_MALFORMED, "The request is not a valid message."
                )
                await _abort(context, status)
            try:
                return await behaviour(request, context)
            except RecserveError as error:
                await _abort(context, status_of(error))
            except (asyncio.CancelledError, grpc.aio.AbortError):
                raise
            except Exception:
                error_id = uuid.uuid4().hex[:12]
                log.exception("request failed", method=method, error_id=error_id)
                message = f"The server failed; its log has the cause under {error_id}."
                await _abort(context, make_status(grpc.StatusCode.INTERNAL, REASON_INTERNAL, message))

        return grpc.unary_unary_rpc_method_handler(
            call, request_deserializer=None, response_serializer=handler.response_serializer
        )


async def _abort(context: grpc.aio.ServicerContext, status: status_pb2.Status) -> NoReturn:
    await context.abort(grpc_code(status), status.message, trailer_of(status))
    raise grpc.aio.AbortError  # abort() has raised already; this tells the type checker.
