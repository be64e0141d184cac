"""``grpc.reflection.v1alpha`` on the seam: the server describes its own services."""

from collections.abc import Callable
from typing import Any

from grpc_reflection.v1alpha import reflection, reflection_pb2

from recserve.engine.server.call import Call
from recserve.engine.server.methods import Method, Shape


class _Answers:
    """Answers each question of one caller, in order."""

    def __init__(self, call: Call, answer: Callable[[Any], Any]) -> None:
        self._call = call
        self._answer = answer

    def message(self, request: reflection_pb2.ServerReflectionRequest) -> None:
        self._call.send(self._answer(request))

    def end(self) -> None:
        self._call.finish()


class Pools:
    """Several descriptor pools that answer as one; the first that knows a name wins."""

    def __init__(self, *pools: Any) -> None:
        self._pools = pools

    def FindFileByName(self, name: str) -> Any:
        return self._first("FindFileByName", name)

    def FindFileContainingSymbol(self, name: str) -> Any:
        return self._first("FindFileContainingSymbol", name)

    def FindMessageTypeByName(self, name: str) -> Any:
        return self._first("FindMessageTypeByName", name)

    def FindExtensionByNumber(self, message: Any, number: int) -> Any:
        return message.file.pool.FindExtensionByNumber(message, number)

    def FindAllExtensions(self, message: Any) -> Any:
        return message.file.pool.FindAllExtensions(message)

    def _first(self, method: str, name: str) -> Any:
        for pool in self._pools:
            try:
                return getattr(pool, method)(name)
            except KeyError:
                continue
        raise KeyError(name)


def reflection_method(services: list[str], pool: Any = None) -> Method:
    """Returns the row that describes ``services``, from ``pool`` (None: the default descriptor pool)."""
    servicer = reflection.ReflectionServicer([*services, reflection.SERVICE_NAME], pool=pool)

    def answer(request: reflection_pb2.ServerReflectionRequest) -> Any:
        return next(iter(servicer.ServerReflectionInfo(iter([request]), None)))

    return Method(
        path=f"/{reflection.SERVICE_NAME}/ServerReflectionInfo",
        request=reflection_pb2.ServerReflectionRequest,
        response=reflection_pb2.ServerReflectionResponse,
        handler=lambda call: _Answers(call, answer),
        scope="reflection",
        shape=Shape.BIDIRECTIONAL,
        priority=0,
        is_admitted=False,
    )
