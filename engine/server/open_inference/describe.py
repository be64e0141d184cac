"""What the server says about itself and its models: metadata and configuration."""

import recserve
from recserve.engine.batch_policy import PRIORITIES, BatcherConfig
from recserve.engine.engine import Engine
from recserve.engine.server.open_inference.models import ServedModel
from recserve.engine.server.open_inference.requests import (
    DEFAULT_PRIORITY,
    HISTORY,
    ITEM_ID,
    SCORE,
    USER_ID,
)
from recserve.engine.types import DEFAULT_K
from recserve.proto import open_inference_pb2 as pb

PLATFORM = "recserve"
# Triton's names of what is implemented here; perf_analyzer asks for statistics when they are listed.
EXTENSIONS = ("classification", "schedule_policy", "model_configuration", "parameters", "statistics")
LOADING_EXTENSION = "model_repository"
ANY = -1


def server_metadata(*, can_load: bool) -> pb.ServerMetadataResponse:
    """Returns name, version and extensions of the server."""
    extensions = [*EXTENSIONS, LOADING_EXTENSION] if can_load else EXTENSIONS
    return pb.ServerMetadataResponse(name="recserve", version=recserve.__version__, extensions=extensions)


def model_metadata(model: ServedModel) -> pb.ModelMetadataResponse:
    """Returns the versions that answer and the tensors of a model, with the batch dimension."""
    tensor = pb.ModelMetadataResponse.TensorMetadata
    return pb.ModelMetadataResponse(
        name=model.name,
        versions=list(model.engines),
        platform=PLATFORM,
        inputs=[
            tensor(name=USER_ID, datatype="BYTES", shape=[ANY, 1]),
            tensor(name=HISTORY, datatype="BYTES", shape=[ANY, ANY]),
        ],
        outputs=[
            tensor(name=ITEM_ID, datatype="BYTES", shape=[ANY, ANY]),
            tensor(name=SCORE, datatype="FP32", shape=[ANY, ANY]),
        ],
        properties=_properties(model.engine),
    )


def model_config(model: ServedModel, batcher: BatcherConfig) -> pb.ModelConfig:
    """Returns the configuration of a model; its dimensions are without the batch."""
    return pb.ModelConfig(
        name=model.name,
        platform=PLATFORM,
        backend=PLATFORM,
        version_policy=pb.ModelVersionPolicy(latest=pb.ModelVersionPolicy.Latest(num_versions=1)),
        max_batch_size=batcher.max_size,
        input=[
            pb.ModelInput(name=USER_ID, data_type=pb.TYPE_STRING, dims=[1]),
            pb.ModelInput(name=HISTORY, data_type=pb.TYPE_STRING, dims=[ANY], optional=True),
        ],
        output=[
            pb.ModelOutput(name=ITEM_ID, data_type=pb.TYPE_STRING, dims=[ANY]),
            pb.ModelOutput(name=SCORE, data_type=pb.TYPE_FP32, dims=[ANY]),
        ],
        # The engine chooses between CPU and GPU.
        instance_group=[
            pb.ModelInstanceGroup(
                name=f"{model.name}_0", kind=pb.ModelInstanceGroup.KIND_MODEL, count=batcher.threads
            )
        ],
        dynamic_batching=pb.ModelDynamicBatching(
            preferred_batch_size=batcher.preferred_sizes,
            max_queue_delay_microseconds=round((batcher.max_delay_ms or 0) * 1000),
            priority_levels=PRIORITIES,
            default_priority_level=DEFAULT_PRIORITY,
            default_queue_policy=pb.ModelQueuePolicy(
                timeout_action=pb.ModelQueuePolicy.REJECT,
                allow_timeout_override=True,
                max_queue_size=batcher.max_waiting,
            ),
        ),
        parameters={
            key: pb.ModelParameter(string_value=value) for key, value in _properties(model.engine).items()
        },
    )


def _properties(engine: Engine) -> dict[str, str]:
    manifest = engine.manifest
    return {
        "model": manifest.model,
        "bundle_version": manifest.bundle_version,
        "n_items": str(manifest.n_items),
        "variants": ",".join(sorted(manifest.variants)),
        "default_variant": manifest.default_variant,
        "device": engine.loaded.runtime.device,
        "degraded": str(engine.loaded.runtime.fell_back).lower(),
        "default_k": str(DEFAULT_K),
        "max_k": str(engine.config.max_k),
        "max_history": str(engine.config.max_history),
    }
