"""A process of its own that says how much memory a graph needs: ``python -m … GRAPH FOLDER INPUTS PART…``."""

import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort

from recserve.engine.bundle import layout
from recserve.engine.bundle.item_table import FORMS

REPEATS = 3


def resident() -> int:
    """Returns the resident bytes of this process (Linux; elsewhere the peak, which only grows)."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main(graph: str, folder: str, inputs: str, *parts: str) -> None:
    """Loads, runs and prints what that added; ``parts``: of the item table, by the names of initializers."""
    with np.load(inputs) as archive:
        recorded = dict(archive)
    known = {name: part for form in FORMS.values() for name, part in form.items()}
    table = {name: np.load(Path(folder, known[name].file), mmap_mode="r") for name in parts}
    data = Path(graph).read_bytes()
    before = resident()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 3
    options.add_session_config_entry(layout.EXTERNAL_FOLDER_OPTION, folder)
    # ONNX Runtime reads them when the session is made: they must live until then.
    bound = {name: ort.OrtValue.ortvalue_from_numpy(np.asarray(part)) for name, part in table.items()}
    for name, value in bound.items():
        options.add_initializer(name, value)
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    for _ in range(REPEATS):
        session.run(None, recorded)
    sys.stdout.write(f"{resident() - before}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
