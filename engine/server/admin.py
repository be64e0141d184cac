"""``recserve.v1.Admin``: what answers, and how that is changed.

What changes something has the scope "model:admin": it is served on the admin address alone, and audited.
"""

import time
from collections.abc import Callable
from typing import Any

from recserve.engine.models.manager import ModelManager
from recserve.engine.models.router import Router
from recserve.engine.server.call import Call
from recserve.engine.server.methods import BACKGROUND, Method
from recserve.engine.server.workers import WorkerPool
from recserve.engine.wire.models import (
    model_to_message,
    route_from_message,
    route_to_message,
    shadow_from_message,
    version_to_message,
)
from recserve.proto import admin_pb2 as pb

PREFIX = "/" + pb.DESCRIPTOR.services_by_name["Admin"].full_name + "/"
READ, CHANGE = "model:read", "model:admin"
# Loads block a thread each; a list must get one meanwhile.
N_THREADS = 4


class AdminService:
    """The rows of the service; calls run on threads of their own, neither count as load nor hold a drain."""

    def __init__(self, manager: ModelManager, router: Router) -> None:
        self._manager = manager
        self._router = router
        self._pool = WorkerPool(N_THREADS)

    def methods(self) -> list[Method]:
        """Returns the rows of the service."""
        rows: tuple[tuple[Any, Any, Callable[[Any, Call], Any], str], ...] = (
            (pb.ListModelsRequest, pb.ListModelsResponse, self._list_models, READ),
            (pb.LoadModelRequest, pb.ModelVersion, self._load_model, CHANGE),
            (pb.UnloadModelRequest, pb.UnloadModelResponse, self._unload_model, CHANGE),
            (pb.ActivateRequest, pb.Route, self._activate, CHANGE),
            (pb.RollbackRequest, pb.Route, self._rollback, CHANGE),
            (pb.SetSplitRequest, pb.Route, self._set_split, CHANGE),
            (pb.SetShadowRequest, pb.Route, self._set_shadow, CHANGE),
        )
        return [
            Method(
                path=PREFIX + request.DESCRIPTOR.name.removesuffix("Request"),
                request=request,
                response=response,
                handler=self._pool.plain(function),
                scope=scope,
                priority=BACKGROUND,
                is_admitted=False,
            )
            for request, response, function, scope in rows
        ]

    def close(self) -> None:
        """Ends the threads after the operations under way."""
        self._pool.close()

    def _list_models(self, message: pb.ListModelsRequest, call: Call) -> pb.ListModelsResponse:
        models = []
        for status in self._manager.models():
            current = self._manager.registry.current(status.name)
            windows = current.windows if current else {}
            stats = {name: window.stats(time.monotonic()) for name, window in windows.items()}
            shadow = status.route.shadow if status.route else None
            compared = self._router.shadow.stats(status.name, shadow.version) if shadow else None
            models.append(model_to_message(status, stats, compared))
        return pb.ListModelsResponse(models=models)

    def _load_model(self, message: pb.LoadModelRequest, call: Call) -> pb.ModelVersion:
        return version_to_message(self._manager.load(message.model, message.version))

    def _unload_model(self, message: pb.UnloadModelRequest, call: Call) -> pb.UnloadModelResponse:
        self._manager.unload(message.model, message.version)
        return pb.UnloadModelResponse()

    def _activate(self, message: pb.ActivateRequest, call: Call) -> pb.Route:
        return route_to_message(self._manager.activate(message.model, message.version, message.variant))

    def _rollback(self, message: pb.RollbackRequest, call: Call) -> pb.Route:
        return route_to_message(self._manager.rollback(message.model))

    def _set_split(self, message: pb.SetSplitRequest, call: Call) -> pb.Route:
        return route_to_message(self._manager.split(message.model, route_from_message(message)))

    def _set_shadow(self, message: pb.SetShadowRequest, call: Call) -> pb.Route:
        shadow = shadow_from_message(message.shadow) if message.HasField("shadow") else None
        return route_to_message(self._manager.shadow(message.model, shadow))
