"""``grpc.health.v1.Health`` on the seam: each service name has a status, and watchers hear of changes."""

import threading
from typing import Any, TypeAlias

from grpc_health.v1 import health_pb2

from recserve.engine.server.call import Call
from recserve.engine.server.methods import Method, Shape
from recserve.errors import UnknownService

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
HEALTH_NAME = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
# A value of the enum ServingStatus.
Status: TypeAlias = int


class HealthService:
    """Statuses by service name ("" is the whole server); safe to call from any thread."""

    def __init__(self) -> None:
        # Guards both, and keeps the messages of a watcher in order. A send may find that the watcher has left
        # and end the call on the spot, whose callback takes the lock again.
        self._lock = threading.RLock()
        self._statuses: dict[str, Status] = {}
        self._watchers: dict[str, set[Call]] = {}

    def status(self, service: str) -> Status:
        """Returns the status of a service name."""
        with self._lock:
            return int(self._statuses.get(service, SERVICE_UNKNOWN))

    def methods(self) -> list[Method]:
        """Returns the rows of the service; none of them is admitted, so overload never hides health."""
        rows = (
            ("Check", health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse, self._check),
            ("List", health_pb2.HealthListRequest, health_pb2.HealthListResponse, self._list),
            ("Watch", health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse, self._watch),
        )
        return [
            Method(
                path=f"/{HEALTH_NAME}/{name}",
                request=request,
                response=response,
                handler=handler,
                scope="health",
                shape=Shape.SERVER_STREAM if name == "Watch" else Shape.UNARY,
                priority=0,
                is_admitted=False,
            )
            for name, request, response, handler in rows
        ]

    def set(self, status: Status, *services: str) -> None:
        """Gives each of ``services`` a status and tells those who watch it."""
        with self._lock:
            for service in services:
                if self._statuses.get(service) != status:
                    self._statuses[service] = status
                    for call in tuple(self._watchers.get(service, ())):
                        call.send(health_pb2.HealthCheckResponse(status=status))

    def is_serving(self, service: str = "") -> bool:
        """Whether the status of ``service`` ("": the whole server) is SERVING."""
        return bool(self._statuses.get(service) == SERVING)

    def close(self) -> None:
        """Ends the streams of those who watch."""
        with self._lock:
            watching = [call for calls in self._watchers.values() for call in calls]
        for call in watching:
            call.finish()

    def _check(self, request: Any, call: Call) -> None:
        status = self._statuses.get(request.service)
        if status is None:
            raise UnknownService("service", found=request.service, expected=", ".join(sorted(self._statuses)))
        call.reply(health_pb2.HealthCheckResponse(status=status))

    def _list(self, request: Any, call: Call) -> None:
        with self._lock:
            statuses = dict(self._statuses)
        answers = {name: health_pb2.HealthCheckResponse(status=status) for name, status in statuses.items()}
        call.reply(health_pb2.HealthListResponse(statuses=answers))

    def _watch(self, request: Any, call: Call) -> None:
        service = request.service
        with self._lock:
            self._watchers.setdefault(service, set()).add(call)
            status = self._statuses.get(service, SERVICE_UNKNOWN)
            call.send(health_pb2.HealthCheckResponse(status=status))
        call.on_done(lambda: self._forget(service, call))

    def _forget(self, service: str, call: Call) -> None:
        with self._lock:
            calls = self._watchers.get(service, set())
            calls.discard(call)
            if not calls:
                self._watchers.pop(service, None)
