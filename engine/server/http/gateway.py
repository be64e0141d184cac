"""The JSON gateway: unary methods of the table as POST routes, through the same chain as gRPC.

Only the codec differs: the body is the JSON of the request message, the answer that of the response, or of
``google.rpc.Status`` under the HTTP code of its gRPC code. A method is a route when its row has ``http``.
"""

import asyncio
import re
from collections.abc import Iterable
from dataclasses import replace

from google.rpc import status_pb2

from recserve.engine.server.call import REQUEST_ID_HEADER, Call
from recserve.engine.server.chain import Chain
from recserve.engine.server.http.json_codec import message_from_json, message_to_json
from recserve.engine.server.http.site import JSON, Ask, CallerGone, Handler, Response, refusal, refuse
from recserve.engine.server.methods import Method

# https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md: at most eight digits and a unit.
TIMEOUT_HEADER = "grpc-timeout"
TIMEOUT_SYNTAX = re.compile(r"([0-9]{1,8})([HMSmun])")
TIMEOUT_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
DEADLINE_HEADER = "x-deadline-ms"
DEADLINE_SYNTAX = re.compile(r"[0-9]{1,8}")


def gateway_routes(
    chain: Chain, methods: Iterable[Method], max_body_bytes: int
) -> dict[str, dict[str, Handler]]:
    """Returns the routes of ``methods`` (unary ones of the chain's table with an ``http`` path)."""
    return {method.http: {"POST": _UnaryRoute(method, chain, max_body_bytes)} for method in methods}


class _UnaryRoute:
    def __init__(self, method: Method, chain: Chain, max_body_bytes: int) -> None:
        self._response = method.response
        # The same row with another decoder: authorisation, admission, handler and errors are the row's own.
        self._method = replace(method, decode=lambda data: message_from_json(method.request, data))
        self._chain = chain
        self._max_body_bytes = max_body_bytes

    async def __call__(self, ask: Ask) -> Response:
        _check_content(ask)
        seconds = _seconds(ask)
        body = await ask.body(self._max_body_bytes)
        call = _HttpCall(self._method, ask, seconds)
        self._chain.dispatch(call, body)
        gone = asyncio.ensure_future(ask.until_gone())
        try:
            await asyncio.wait((call.answer, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            # Without effect when it is answered.
            call.cancel()
        if not call.answer.done():
            raise CallerGone
        answer = call.answer.result()
        headers = ((REQUEST_ID_HEADER, call.request_id),)
        if isinstance(answer, status_pb2.Status):
            return refusal(answer, headers=headers)
        # Here and not in the row's encode: that runs on the thread that computes batches.
        return Response(message_to_json(self._response.FromString(answer)), headers=headers)


class _HttpCall(Call):
    __slots__ = ("_loop", "answer")

    def __init__(self, method: Method, ask: Ask, seconds: float | None) -> None:
        super().__init__(method, metadata=ask.headers, peer=ask.peer, seconds=seconds)
        self._loop = asyncio.get_running_loop()
        self.answer: asyncio.Future[bytes | status_pb2.Status] = self._loop.create_future()

    def _send_reply(self, data: bytes) -> None:
        self._loop.call_soon_threadsafe(self._resolve, data)

    def _send_failure(self, status: status_pb2.Status) -> None:
        self._loop.call_soon_threadsafe(self._resolve, status)

    def _resolve(self, answer: bytes | status_pb2.Status) -> None:
        self.answer.set_result(answer)


def _check_content(ask: Ask) -> None:
    kind, _, parameters = ask.header("content-type").partition(";")
    charset = parameters.strip().lower().removeprefix("charset=").strip('"')
    # A page of another site can send forms and text unasked, but not this type: it must stay required.
    if kind.strip().lower() != JSON or charset not in ("", "utf-8"):
        raise refuse(415, f"The body must be {JSON} in UTF-8.", (("accept", JSON),))
    if ask.header("content-encoding").lower() not in ("", "identity"):
        raise refuse(415, "Compressed bodies are not taken.")


def _seconds(ask: Ask) -> float | None:
    """Returns the seconds until the caller's deadline: the sooner one of both headers, None without any."""
    given: list[float] = []
    if text := ask.header(TIMEOUT_HEADER):
        match = TIMEOUT_SYNTAX.fullmatch(text)
        if match is None:
            raise refuse(400, f"{TIMEOUT_HEADER} must be digits and one of H M S m u n, as in 500m.")
        given.append(int(match[1]) * TIMEOUT_UNITS[match[2]])
    if text := ask.header(DEADLINE_HEADER):
        if DEADLINE_SYNTAX.fullmatch(text) is None:
            raise refuse(400, f"{DEADLINE_HEADER} must be whole milliseconds from now, as in 500.")
        given.append(int(text) / 1000)
    return min(given, default=None)
