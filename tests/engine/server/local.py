"""A call without a network, for tests of what stands behind the transports."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from google.rpc import status_pb2

from recserve.engine.server.call import Call
from recserve.engine.server.methods import Method, Shape
from recserve.errors import BundleInvalid, BundleReason, RecserveError

TIMEOUT_SECONDS = 30


def new_error(kind: type[RecserveError]) -> RecserveError:
    """An error of ``kind`` whose sentence is "the name is wrong; expected right."."""
    # Which brings a reason closer than that of its class.
    own: dict[str, Any] = {"reason": BundleReason.FILE_DIGEST} if kind is BundleInvalid else {}
    return kind("the name", found="wrong", expected="right", **own)


class Bytes:
    """Stands for a message class whose messages are their own bytes; b"bad" is not one."""

    @staticmethod
    def FromString(data: bytes) -> bytes:
        if data == b"bad":
            raise ValueError(data)
        return data

    @staticmethod
    def SerializeToString(message: bytes) -> bytes:
        return bytes(memoryview(message))


def echo_method(handler: Callable[..., Any], **settings: Any) -> Method:
    fields: dict[str, Any] = {"path": "/test.Echo/Say", "scope": "test", "shape": Shape.UNARY, **settings}
    return Method(request=Bytes, response=Bytes, handler=handler, **fields)


class LocalCall(Call):
    """Keeps its answers: ``result()`` returns the reply or raises the error that was given to ``fail``."""

    __slots__ = ("ended", "error", "future", "n_answers", "sent")

    def __init__(self, method: Method, **settings: Any) -> None:
        super().__init__(method, **settings)
        self.future: Future[bytes | status_pb2.Status] = Future()
        self.error: BaseException | None = None
        self.n_answers = 0
        self.sent: list[bytes] = []
        self.ended = False

    def fail(self, error: BaseException) -> bool:
        self.error = self.error or error
        return super().fail(error)

    def result(self) -> bytes:
        answer = self.future.result(TIMEOUT_SECONDS)
        if isinstance(answer, status_pb2.Status):
            assert self.error is not None
            raise self.error
        return answer

    @property
    def refusal(self) -> RecserveError:
        assert isinstance(self.error, RecserveError)
        return self.error

    def _send_reply(self, data: bytes) -> None:
        self.n_answers += 1
        self.future.set_result(data)

    def _send_failure(self, status: status_pb2.Status) -> None:
        self.n_answers += 1
        self.future.set_result(status)

    def _send_message(self, data: bytes) -> None:
        self.sent.append(data)

    def _send_end(self) -> None:
        self.ended = True
