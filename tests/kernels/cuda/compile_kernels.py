"""Compiles every kernel for one compute capability, without a GPU, and assembles it: ``MAJOR MINOR FOLDER``.

Prints JSON: per kernel what ptxas says of it. A process of its own per capability, because device functions
are compiled once per process.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cuda.pathfinder import find_nvidia_binary_utility
from numba import cuda
from numba.cuda import dispatcher, types

from recserve.kernels.cuda import masks, scan, select

INT, FLOAT, FLAG = types.int64, types.float32, types.int64


def array(dtype: Any, ndim: int) -> Any:
    return types.Array(dtype, ndim, "C")


WORDS = array(types.uint32, 2)
ITEMS = array(types.int32, 1)
FLOATS, FLOATS_2D, TILES = (array(FLOAT, ndim) for ndim in (1, 2, 3))
KEYS_1D, KEYS = (array(types.uint64, ndim) for ndim in (1, 2))
RULES = (WORDS, FLAG, FLOATS)

SIGNATURES: dict[Any, tuple[Any, ...]] = {
    scan.scan_float32: (TILES, ITEMS, *RULES, FLOATS_2D, INT, KEYS),
    scan.scan_float16: (array(types.float16, 3), FLOATS_2D, ITEMS, *RULES, FLOATS_2D, FLOATS, INT, KEYS),
    scan.scan_int8: (
        array(types.uint32, 3),
        FLOATS_2D,
        ITEMS,
        *RULES,
        array(types.int32, 2),
        FLOATS_2D,
        ITEMS,
        INT,
        KEYS,
    ),
    scan.score_groups: (TILES, ITEMS, ITEMS, *RULES, FLOATS_2D, INT, KEYS, INT, KEYS),
    select.select_largest: (KEYS, INT, INT, INT, KEYS, KEYS_1D),
    select.write_answer: (KEYS, INT, FLOATS_2D, array(types.int32, 2)),
    masks.spread_words: (WORDS, INT, WORDS),
    masks.clear_items: (ITEMS, ITEMS, INT, ITEMS, WORDS),
}


def main(major: str, minor: str, folder: str) -> None:
    capability = (int(major), int(minor))
    # Numba asks the current device for the capability of device functions, even when it only makes PTX.
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=capability)
    found = {}
    for kernel, signature in SIGNATURES.items():
        name = kernel.py_func.__name__
        ptx, _ = cuda.compile(
            kernel.py_func, signature, cc=capability, output="ptx", device=False, abi="numba"
        )
        path = Path(folder) / f"{name}.ptx"
        path.write_text(ptx, encoding="utf-8")
        found[name] = {**instructions(ptx), **assemble(path, f"sm_{major}{minor}")}
    sys.stdout.write(json.dumps(found))


def instructions(ptx: str) -> dict[str, Any]:
    """How often the instructions appear that the arithmetic depends on."""
    return {
        "target": re.search(r"^\.target (\w+)", ptx, re.MULTILINE).group(1),  # type: ignore[union-attr]
        "fused": len(re.findall(r"\bfma\.rn\.f32\b", ptx)),
        "unrounded": len(re.findall(r"\b(?:add|sub|mul)\.f32\b", ptx)),
        "multiply": len(re.findall(r"\bmul\.rn\.f32\b", ptx)),
        "add": len(re.findall(r"\badd\.rn\.f32\b", ptx)),
        "dot4": len(re.findall(r"\bdp4a\.u32\.s32\b", ptx)),
        "flushed": len(re.findall(r"\.ftz\b", ptx)),
        "double": len(re.findall(r"\.f64\b", ptx)),
    }


def assemble(path: Path, target: str) -> dict[str, int]:
    """What ptxas reports: bytes, and registers per thread."""
    command = [
        find_nvidia_binary_utility("ptxas"),
        "-v",
        f"-arch={target}",
        "-o",
        str(path.with_suffix(".cubin")),
        str(path),
    ]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stderr

    def number(pattern: str) -> int:
        match = re.search(pattern, report)
        return int(match.group(1)) if match else 0

    return {
        "stack": number(r"(\d+) bytes stack frame"),
        "spill_stores": number(r"(\d+) bytes spill stores"),
        "spill_loads": number(r"(\d+) bytes spill loads"),
        "registers": number(r"Used (\d+) registers"),
        "shared": number(r"(\d+) bytes smem"),
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
