"""Asks another library, which runs in a virtual environment of its own that is made on first use."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recserve.benchmarks.peers.venv import PEERS, peer_python
from recserve.benchmarks.quality.bars import Contender
from recserve.errors import CheckFailed

# Every contender on one thread: the seconds compare, and a busy core beside does not decide.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def ask_peer(
    contender: Contender, arrays: Mapping[str, NDArray[Any]], seed: int, environments: Path
) -> dict[str, NDArray[Any]]:
    """Returns the arrays that the peer's script wrote.

    The script ``peers/LIBRARY_TASK.py`` gets one argument, a JSON file with model, seed, settings, grid, and
    the paths of the ``arrays`` (.npz) and of the ``output`` (.npz) that it writes. Raises
    :class:`CheckFailed` where it fails, its words on stderr.
    """
    script = PEERS / f"{contender.script}.py"
    if contender.library == "numpy":
        python = Path(sys.executable)
    else:
        python = peer_python(contender.library, environments)
    with tempfile.TemporaryDirectory() as folder:
        told, log = Path(folder, "settings.json"), Path(folder, "log.txt")
        settings = {
            "model": contender.model,
            "seed": seed,
            "settings": dict(contender.settings),
            "grid": [dict(options) for options in contender.grid],
            "arrays": str(Path(folder, "arrays.npz")),
            "output": str(Path(folder, "output.npz")),
        }
        np.savez(str(settings["arrays"]), **arrays)  # type: ignore[arg-type]
        told.write_text(json.dumps(settings), encoding="utf-8")
        with log.open("w", encoding="utf-8") as words:
            command = [str(python), str(script), str(told)]
            environment = {**os.environ, **ONE_THREAD}
            finished = subprocess.run(
                command, check=False, stdout=words, stderr=words, env=environment, cwd=folder
            )
        if finished.returncode != 0:
            sys.stderr.write(log.read_text(encoding="utf-8"))
            raise CheckFailed(
                contender.name, found=f"exit code {finished.returncode}", expected="0; see above"
            )
        with np.load(str(settings["output"])) as output:
            return {name: output[name] for name in output}
