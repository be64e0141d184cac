"""ONNX Runtime for the graphs of one bundle: the options of the settings, the provider that really runs."""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
import structlog
from numpy.typing import NDArray

from recserve.engine.bundle import Bundle, layout
from recserve.engine.config import AUTO, CPU, CUDA, TENSORRT, EngineConfig, SessionConfig
from recserve.engine.recorded import RecordedSession
from recserve.errors import BundleInvalid, BundleReason, ConfigError

log = structlog.get_logger("recserve.engine")

CPU_PROVIDER, CUDA_PROVIDER = "CPUExecutionProvider", "CUDAExecutionProvider"
TENSORRT_PROVIDER = "TensorrtExecutionProvider"
LEVELS = {
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


class _BoundSession(ort.InferenceSession):  # type: ignore[misc]
    """A session that binds what goes in and out to its device in every call."""

    def run(
        self,
        output_names: Sequence[str],
        input_feed: Mapping[str, NDArray[Any]],
        run_options: ort.RunOptions | None = None,
    ) -> list[NDArray[Any]]:
        binding = self.io_binding()
        for name, array in input_feed.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name in output_names:
            binding.bind_output(name)
        self.run_with_iobinding(binding, run_options)
        return binding.copy_outputs_to_cpu()  # type: ignore[no-any-return]


# The inferences under way, by the thread that waits for each.
_under_way: dict[int, ort.RunOptions] = {}


class Runtime:
    """Opens the graphs of a bundle.

    With the setting "auto" a GPU that is there and does not work is given up once, with a warning:
    ``fell_back`` is true from then on, and all graphs that are opened later run on the CPU.
    ``providers``: graph → the provider that runs it, as ONNX Runtime tells it.
    """

    def __init__(self, bundle: Bundle, config: EngineConfig) -> None:
        """Raises :class:`ConfigError` for "cuda" or "tensorrt" on a machine without a GPU."""
        self._bundle = bundle
        self._config = config
        self._wanted = select_providers(config.provider)
        self.fell_back = False
        self.providers: dict[str, str] = {}

    @property
    def device(self) -> str:
        """Where all graphs run: cuda or tensorrt, or cpu where they differ (or there is none)."""
        devices = {CUDA_PROVIDER: CUDA, TENSORRT_PROVIDER: TENSORRT}
        used = set(self.providers.values())
        return devices.get(used.pop(), CPU) if len(used) == 1 else CPU

    def open(
        self,
        graph: str,
        initializers: Mapping[str, ort.OrtValue] | None = None,
        *,
        keeps_memory: bool = False,
        without: Sequence[str] = (),
    ) -> ort.InferenceSession:
        """Opens the file ``graph``; ``initializers``: tensors that are bound instead of the graph's own.

        ``keeps_memory``: for a graph of small tensors, whose allocation counts, whatever the settings say.
        ``without``: optimizers of ONNX Runtime that are not to touch the graph.
        Raises :class:`BundleInvalid`, or :class:`ConfigError` where "cuda" or "tensorrt" does not work.
        """
        options = session_options(self._config)
        options.enable_cpu_mem_arena |= keeps_memory
        options.add_session_config_entry(layout.EXTERNAL_FOLDER_OPTION, str(self._bundle.folder.resolve()))
        for name, value in (initializers or {}).items():
            options.add_initializer(name, value)
        try:
            session = session_kind(self._config.session)(
                self._bundle.read(graph),
                options,
                providers=with_options(self._wanted, self._config.session),
                disabled_optimizers=without,
            )
        except Exception as error:
            raise BundleInvalid(
                f"graph {graph}",
                found="refused by ONNX Runtime",
                expected="a valid ONNX graph",
                reason=BundleReason.GRAPH_REFUSED,
            ) from error
        provider = session.get_providers()[0]
        if provider != self._wanted[0]:
            self._give_up(graph, provider)
        self.providers[graph] = provider
        return session

    def _give_up(self, graph: str, provider: str) -> None:
        """ONNX Runtime itself goes on with the CPU and writes a line to stderr."""
        if self._config.provider != AUTO:
            raise ConfigError(
                "engine.provider",
                found=f"{self._config.provider}, which does not work",
                expected=f"{AUTO} or {CPU} on this machine",
                cure="CUDA, cuDNN or TensorRT may be missing"
                + (
                    ", or the graph cannot be recorded (cuda_graph)."
                    if self._config.session.cuda_graph
                    else "."
                ),
            )
        self._wanted = [provider]
        self.fell_back = True
        log.warning("GPU does not work, graphs run on the CPU", graph=graph, provider=provider)


def infer(session: ort.InferenceSession, output: str, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """Runs a graph for one of its outputs, in a way that :func:`end_inference` can end."""
    return infer_all(session, [output], inputs)[0]


def infer_all(
    session: ort.InferenceSession, outputs: Sequence[str], inputs: Mapping[str, NDArray[Any]]
) -> list[NDArray[Any]]:
    """Runs a graph for some of its outputs, in a way that :func:`end_inference` can end."""
    thread = threading.get_ident()
    _under_way[thread] = options = ort.RunOptions()
    try:
        return session.run(outputs, inputs, options)  # type: ignore[no-any-return]
    finally:
        del _under_way[thread]


def end_inference(thread: int) -> None:
    """Makes the inference that a thread is in, if any, fail at its next operator."""
    options = _under_way.get(thread)
    if options is not None:
        options.terminate = True


def session_options(config: EngineConfig) -> ort.SessionOptions:
    """Returns the options that every graph of a bundle is run with."""
    session = config.session
    options = ort.SessionOptions()
    options.intra_op_num_threads = session.threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(session.spinning)))
    options.add_session_config_entry("session.disable_prepacking", str(int(not session.prepacking)))
    options.enable_cpu_mem_arena = session.arena
    options.enable_mem_pattern = session.memory_pattern
    options.graph_optimization_level = LEVELS[session.optimisation]
    options.log_severity_level = 3
    return options


def session_kind(session: SessionConfig) -> type[ort.InferenceSession]:
    """Returns the class of sessions that calls are made through."""
    if session.cuda_graph:
        return RecordedSession
    return _BoundSession if session.io_binding else ort.InferenceSession


def with_options(providers: list[str], session: SessionConfig) -> list[str | tuple[str, dict[str, str]]]:
    """Returns providers as a session takes them."""
    recorded = {"enable_cuda_graph": "1"}
    return [(name, recorded) if session.cuda_graph and name == CUDA_PROVIDER else name for name in providers]


def select_providers(provider: str) -> list[str]:
    """Returns ONNX Runtime provider names; ``get_ep_devices`` tells what is there, not what was built."""
    if provider == CPU:
        return [CPU_PROVIDER]
    if any(device.ep_name == CUDA_PROVIDER for device in ort.get_ep_devices()):
        # What TensorRT cannot do, CUDA does.
        first = [TENSORRT_PROVIDER] if provider == TENSORRT else []
        return [*first, CUDA_PROVIDER, CPU_PROVIDER]
    if provider in (CUDA, TENSORRT):
        raise ConfigError(
            "engine.provider",
            found=provider,
            expected=f"{CPU} or {AUTO} on this machine",
            cure="No CUDA device is here.",
        )
    return [CPU_PROVIDER]
