"""CUDA graphs: what a session launches for inputs of one shape is recorded once and replayed from then on.

Of many small operators the launches cost more than the work; a replay is one launch. ONNX Runtime records
what one thread does at fixed addresses, so each session has a thread that makes all its calls, one after the
other, and each shape of the inputs has buffers of its own on the device.
"""

from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

# Of each session. Every recording keeps its buffers and its launches; later shapes are answered without one.
MAX_RECORDED = 64
# The option of a run that names the recording to make or to replay, and the name for none.
RECORDING, NONE = "gpu_graph_id", -1


class RecordedSession(ort.InferenceSession):  # type: ignore[misc]
    """A session whose calls are recorded; from any thread, as other sessions. Has not run on a GPU yet."""

    device = "cuda"

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._caller = ThreadPoolExecutor(1, thread_name_prefix="recorded-session")
        self._recorded: dict[Hashable, _Buffers] = {}

    def run(
        self,
        output_names: Sequence[str],
        input_feed: Mapping[str, NDArray[Any]],
        run_options: ort.RunOptions | None = None,
    ) -> list[NDArray[Any]]:
        """Answers as any session. The first call of a shape is not recorded, the second is, others replay."""
        options = ort.RunOptions() if run_options is None else run_options
        return self._caller.submit(self._run, output_names, input_feed, options).result()

    def _run(
        self, outputs: Sequence[str], inputs: Mapping[str, NDArray[Any]], options: ort.RunOptions
    ) -> list[NDArray[Any]]:
        shape = (*outputs, *((name, array.shape, array.dtype) for name, array in inputs.items()))
        buffers = self._recorded.get(shape)
        if buffers is None:
            buffers = _Buffers(self, outputs, inputs)
            options.add_run_config_entry(RECORDING, str(NONE))
            answer = buffers.run(inputs, options)
            if len(self._recorded) < MAX_RECORDED:
                buffers.keep_outputs(len(self._recorded))
                self._recorded[shape] = buffers
            return answer
        options.add_run_config_entry(RECORDING, str(buffers.recording))
        return buffers.run(inputs, options)


class _Buffers:
    """Where inputs and outputs of one shape are on the device."""

    def __init__(
        self, session: RecordedSession, outputs: Sequence[str], inputs: Mapping[str, NDArray[Any]]
    ) -> None:
        self._session, self._names = session, list(outputs)
        self.recording = NONE
        self._binding = session.io_binding()
        self._inputs = {
            name: ort.OrtValue.ortvalue_from_shape_and_type(array.shape, array.dtype, session.device)
            for name, array in inputs.items()
        }
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for name in outputs:
            # Until their shapes are known.
            self._binding.bind_output(name, session.device)

    def run(self, inputs: Mapping[str, NDArray[Any]], options: ort.RunOptions) -> list[NDArray[Any]]:
        for name, array in inputs.items():
            self._inputs[name].update_inplace(np.ascontiguousarray(array))
        self._session.run_with_iobinding(self._binding, options)
        # Copies: the next call of this shape writes to the same place.
        return [np.array(value.numpy()) for value in self._binding.get_outputs()]

    def keep_outputs(self, recording: int) -> None:
        """Makes what the first run wrote to the place of all answers to come."""
        self.recording = recording
        for name, value in zip(self._names, self._binding.get_outputs(), strict=True):
            self._binding.bind_ortvalue_output(name, value)
