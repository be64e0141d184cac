"""The methods of ``inference.GRPCInferenceService``."""

from typing import Any

from recserve.engine.batch_policy import BatcherConfig
from recserve.engine.batcher import Batcher
from recserve.engine.server.call import Call
from recserve.engine.server.health import HealthService
from recserve.engine.server.methods import BACKGROUND, INTERACTIVE, Method
from recserve.engine.server.open_inference.describe import model_config, model_metadata, server_metadata
from recserve.engine.server.open_inference.inference import Inference
from recserve.engine.server.open_inference.models import READY, ServedModels
from recserve.engine.server.open_inference.requests import read_infer
from recserve.engine.server.open_inference.statistics import Statistics
from recserve.engine.server.workers import WorkerPool
from recserve.errors import InvalidRequest, RecserveError, Unsupported
from recserve.proto import open_inference_pb2 as pb

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
PREFIX = f"/{SERVICE_NAME}/"
N_THREADS = 2


class OpenInferenceService:
    """Answers for the models of a repository; inference goes through the batcher of all requests."""

    def __init__(
        self,
        models: ServedModels,
        statistics: Statistics,
        health: HealthService,
        batcher_config: BatcherConfig,
    ) -> None:
        self._models = models
        self._statistics = statistics
        self._health = health
        self._batcher_config = batcher_config
        # For what waits for a disk: a load must keep no other call from a thread.
        self._pool = WorkerPool(N_THREADS)

    def methods(self, batcher: Batcher[Any]) -> list[Method]:
        """Returns the rows of the service; only inference counts as work in flight."""

        def infer(request: pb.ModelInferRequest, call: Call) -> None:
            model = self._models.find(request.model_name, request.model_version)
            call.served_by = (model.name, next(iter(model.engines)))
            ask = read_infer(request, self._batcher_config.max_size)
            Inference(request, call, ask, model.name, lambda row: batcher.submit(None, row)).start()

        descriptor = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
        handlers: dict[str, tuple[str, Any]] = {
            "ServerLive": ("health", self._server_live),
            "ServerReady": ("health", self._server_ready),
            "ModelReady": ("health", self._model_ready),
            "ServerMetadata": ("model:read", self._server_metadata),
            "ModelMetadata": ("model:read", self._model_metadata),
            "ModelConfig": ("model:read", self._model_config),
            "ModelStatistics": ("model:read", self._model_statistics),
            "RepositoryIndex": ("model:read", self._pool.plain(self._index)),
            "RepositoryModelLoad": ("model:admin", self._pool.plain(self._load)),
            "RepositoryModelUnload": ("model:admin", self._pool.plain(self._unload)),
            "ModelInfer": ("recommend", infer),
        }
        return [
            Method(
                path=PREFIX + name,
                request=getattr(pb, descriptor[name].input_type.name),
                response=getattr(pb, descriptor[name].output_type.name),
                handler=handler,
                scope=scope,
                priority=INTERACTIVE if handler is infer else BACKGROUND,
                is_admitted=handler is infer,
                is_batched=handler is infer,
                weight=self._n_rows if handler is infer else None,
            )
            for name, (scope, handler) in handlers.items()
        ]

    def close(self) -> None:
        """Ends the threads after the operations under way."""
        self._pool.close()

    def _n_rows(self, request: pb.ModelInferRequest) -> int:
        rows = [tensor.shape[0] for tensor in request.inputs if tensor.shape]
        return min(max(rows, default=1), self._batcher_config.max_size)  # More are refused.

    def _server_live(self, request: pb.ServerLiveRequest, call: Call) -> None:
        call.reply(pb.ServerLiveResponse(live=True))

    def _server_ready(self, request: pb.ServerReadyRequest, call: Call) -> None:
        call.reply(pb.ServerReadyResponse(ready=self._health.is_serving()))

    def _model_ready(self, request: pb.ModelReadyRequest, call: Call) -> None:
        try:
            self._models.find(request.name, request.version)
        except RecserveError:
            call.reply(pb.ModelReadyResponse(ready=False))
        else:
            call.reply(pb.ModelReadyResponse(ready=self._health.is_serving(SERVICE_NAME)))

    def _server_metadata(self, request: pb.ServerMetadataRequest, call: Call) -> None:
        call.reply(server_metadata(can_load=self._models.can_load))

    def _model_metadata(self, request: pb.ModelMetadataRequest, call: Call) -> None:
        call.reply(model_metadata(self._models.find(request.name, request.version)))

    def _model_config(self, request: pb.ModelConfigRequest, call: Call) -> None:
        model = self._models.find(request.name, request.version)
        call.reply(pb.ModelConfigResponse(config=model_config(model, self._batcher_config)))

    def _model_statistics(self, request: pb.ModelStatisticsRequest, call: Call) -> None:
        if request.name:
            model = self._models.find(request.name, request.version)
            served = [(model.name, version) for version in model.engines]
        elif request.version:
            raise InvalidRequest("name", found="empty", expected="that of the model whose version is given")
        else:
            served = self._models.served()
        stats = [self._statistics.message(name, version) for name, version in served]
        call.reply(pb.ModelStatisticsResponse(model_stats=stats))

    def _index(self, request: pb.RepositoryIndexRequest, call: Call) -> pb.RepositoryIndexResponse:
        _check_repository(request.repository_name)
        return pb.RepositoryIndexResponse(
            models=[
                pb.RepositoryIndexResponse.ModelIndex(
                    name=state.name, version=state.version, state=state.state, reason=state.reason
                )
                for state in self._models.states()
                if state.state == READY or not request.ready
            ]
        )

    def _load(self, request: pb.RepositoryModelLoadRequest, call: Call) -> pb.RepositoryModelLoadResponse:
        _check_repository(request.repository_name)
        if request.parameters:
            raise Unsupported(
                "parameters of the load",
                found=", ".join(sorted(request.parameters)),
                expected="none",
                cure="A bundle brings its own configuration.",
            )
        self._models.load(request.model_name)
        return pb.RepositoryModelLoadResponse()

    def _unload(
        self, request: pb.RepositoryModelUnloadRequest, call: Call
    ) -> pb.RepositoryModelUnloadResponse:
        _check_repository(request.repository_name)
        # unload_dependents, the one parameter, says nothing here: no model depends on another.
        self._models.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()


def _check_repository(name: str) -> None:
    if name:
        raise Unsupported("repository_name", found=name, expected="empty", cure="There is one repository.")
