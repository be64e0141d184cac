"""What a process that serves a bundle holds: measured in a fresh one per bundle.

python -m recserve.benchmarks.scale.memory BUNDLE
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recserve.engine.bundle import layout
from recserve.engine.bundle.reader import read_manifest
from recserve.errors import CheckFailed

USER_FILES = (layout.HISTORIES, layout.USER_LOOKUP, layout.USER_EMBEDDINGS)


def measure(bundles: Sequence[Path]) -> list[dict[str, Any]]:
    """Returns, per bundle, what its process holds once it has answered, and at most held while loading."""
    _fresh_process(bundles[0])  # From here on the compiled kernels are in the cache.
    return [_fresh_process(bundle) for bundle in bundles]


def per_item_and_user(measured: Sequence[dict[str, Any]], bundle: Path, n_users: int) -> dict[str, float]:
    """Returns bytes of an item, of a user, and of the rest.

    Of an item: the slope of the resident size over the catalogues' sizes, of which there are two at
    least. Of a user: what the bundle's files have for it, which are mapped and shared.
    """
    sizes = [one["n_items"] for one in measured]
    resident = [one["resident_bytes"] for one in measured]
    files = read_manifest(bundle).files
    of_users = sum(files[name].size_bytes for name in USER_FILES if name in files)
    slope, rest = np.polyfit(sizes, resident, 1).tolist()
    return {"item_bytes": slope, "user_bytes": of_users / max(1, n_users), "process_bytes": rest}


def _fresh_process(bundle: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "recserve.benchmarks.scale.memory", str(bundle)]
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if finished.returncode != 0:
        raise CheckFailed("process of a bundle", found=f"exit code {finished.returncode}", expected="0")
    said: dict[str, Any] = json.loads(finished.stdout)
    return said


def _hold(bundle: str) -> dict[str, Any]:
    """What the fresh process does: loads, answers, and looks at itself."""
    import time

    from recserve.engine import Engine, EngineConfig, Request

    began = time.perf_counter()
    with Engine.load(bundle, EngineConfig(provider="cpu")) as engine:
        load_s = time.perf_counter() - began
        users = list(engine.user_ids()[:100]) or [""]
        engine.recommend_many([Request(user_id=user) for user in users])
        return {
            "n_items": engine.manifest.n_items,
            "resident_bytes": status_bytes("VmRSS"),
            "peak_bytes": status_bytes("VmHWM"),
            "load_s": load_s,
        }


def status_bytes(name: str) -> int:
    """Bytes of this process, as Linux counts them."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise CheckFailed(f"{name} in /proc/self/status", found="missing", expected="a line")


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_hold(sys.argv[1])))
