"""A process of its own that says how much memory a graph needs: ``python -m … GRAPH FOLDER INPUTS``."""

import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort

from recserve.engine.bundle import layout

REPEATS = 3


def resident() -> int:
    """Returns the resident bytes of this process (Linux; elsewhere the peak, which only grows)."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main(graph: str, folder: str, inputs: str) -> None:
    """Loads, runs and prints what that added."""
    with np.load(inputs) as archive:
        recorded = dict(archive)
    table = np.load(Path(folder, layout.ITEM_EMBEDDINGS), mmap_mode="r")
    data = Path(graph).read_bytes()
    before = resident()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 3
    options.add_session_config_entry(layout.EXTERNAL_FOLDER_OPTION, folder)
    shared = ort.OrtValue.ortvalue_from_numpy(np.asarray(table))
    options.add_initializer(layout.ITEM_EMBEDDINGS_INITIALIZER, shared)
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    for _ in range(REPEATS):
        session.run([layout.QUERY_EMBEDDING_OUTPUT], recorded)
    sys.stdout.write(f"{resident() - before}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
