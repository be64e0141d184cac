"""The little of HTTP that the routes share, as an ASGI application: dispatch, refusals, headers, bodies."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc
import structlog
from google.rpc import status_pb2

from recserve.engine.server.http.errors import (
    http_code,
    refusal_status,
    retry_after,
    status_json,
    too_large,
)
from recserve.engine.wire.status import REASON_INTERNAL, make_status

log = structlog.get_logger("recserve.server")

JSON = "application/json"
# A caller that does not send what it announced must not hold a connection for ever.
BODY_SECONDS = 10.0

Headers: TypeAlias = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Response:
    """An answer: HTTP status, body, media type and further headers."""

    body: bytes
    media_type: str = JSON
    code: int = 200
    headers: Headers = ()


class Refused(Exception):
    """Ends a request with ``response``."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.code)
        self.response = response


class CallerGone(Exception):
    """The caller has left: there is nobody to answer."""


def refusal(status: status_pb2.Status, *, code: int | None = None, headers: Headers = ()) -> Response:
    """Returns the answer of a rich status; ``code`` where HTTP has a better word than the status table."""
    pause = retry_after(status)
    if pause is not None:
        headers = (*headers, ("retry-after", str(pause)))
    return Response(status_json(status).encode(), code=code or http_code(status), headers=headers)


def refuse(code: int, sentence: str, headers: Headers = ()) -> Refused:
    """Returns a refusal by HTTP itself."""
    return Refused(refusal(refusal_status(code, sentence), code=code, headers=headers))


def json_response(value: Any, *, code: int = 200) -> Response:
    """Returns ``value`` as JSON."""
    return Response(json.dumps(value, ensure_ascii=False, allow_nan=False).encode(), code=code)


@dataclass(slots=True)
class Ask:
    """One request: ``headers`` in lower case, ``peer`` as gRPC writes it."""

    method: str
    path: str
    peer: str
    headers: tuple[tuple[str, str], ...]
    receive: Callable[[], Awaitable[Any]] = field(repr=False)

    def header(self, name: str) -> str:
        """Returns the first value of a header, "" for none."""
        return next((value for key, value in self.headers if key == name), "")

    async def body(self, limit: int) -> bytes:
        """Reads the body; refuses one over ``limit`` bytes, without reading on, and one that never ends."""
        announced = self.header("content-length")
        if announced.isdecimal() and int(announced) > limit:
            raise Refused(refusal(too_large(f"{announced} bytes long", limit)))
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                more = True
                while more:
                    event = await self.receive()
                    if event["type"] == "http.disconnect":
                        raise CallerGone
                    chunks.append(event.get("body", b""))
                    size += len(chunks[-1])
                    if size > limit:
                        raise Refused(refusal(too_large(f"over {limit} bytes long", limit)))
                    more = event.get("more_body", False)
        except TimeoutError:
            raise refuse(408, f"The body did not arrive within {BODY_SECONDS:g} s.") from None
        return b"".join(chunks)

    async def until_gone(self) -> None:
        """Returns when the caller closes the connection; only after the body has been read."""
        while (await self.receive())["type"] != "http.disconnect":
            pass


Handler: TypeAlias = Callable[[Ask], Awaitable[Response]]


class Site:
    """Answers by exact path and method; everything else is refused with a google.rpc.Status in JSON."""

    def __init__(self, routes: Mapping[str, Mapping[str, Handler]]) -> None:
        self._routes = routes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """The ASGI entry; the server speaks HTTP only (no websockets, no lifespan)."""
        ask = Ask(
            scope["method"],
            scope["path"],
            _peer(scope.get("client")),
            tuple(
                (name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]
            ),
            receive,
        )
        try:
            response = await self._answer(ask)
        except CallerGone:
            return
        headers = [("content-type", response.media_type), ("x-content-type-options", "nosniff")]
        headers += [("content-length", str(len(response.body))), *response.headers]
        encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        await send({"type": "http.response.start", "status": response.code, "headers": encoded})
        await send({"type": "http.response.body", "body": response.body})

    async def _answer(self, ask: Ask) -> Response:
        try:
            return await self._handler(ask)(ask)
        except Refused as refused:
            return refused.response
        except CallerGone:
            raise
        except Exception:
            log.exception("http request failed", path=ask.path if ask.path in self._routes else "")
            status = make_status(
                grpc.StatusCode.INTERNAL, REASON_INTERNAL, "The server failed; its log has the cause."
            )
            return refusal(status)

    def _handler(self, ask: Ask) -> Handler:
        methods = self._routes.get(ask.path)
        if methods is None:
            raise refuse(404, "There is nothing at this path. GET / lists what there is.")
        # The server sends no body for HEAD.
        handler = methods.get("GET" if ask.method == "HEAD" else ask.method)
        if handler is None:
            allowed = ", ".join(sorted({*methods, *(["HEAD"] if "GET" in methods else [])}))
            raise refuse(405, f"This path takes {allowed}.", (("allow", allowed),))
        return handler


def _peer(client: Any) -> str:
    return f"ipv{6 if ':' in client[0] else 4}:{client[0]}:{client[1]}" if client else ""
