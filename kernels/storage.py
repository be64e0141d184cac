"""An index on disk: one .npy file per array, so that processes map the same pages of memory."""

import json
import os
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from recserve.errors import BundleInvalid, BundleReason, InvalidRequest
from recserve.kernels.calibration import Calibration
from recserve.kernels.checks import read_only
from recserve.kernels.metrics import METRICS, Metric
from recserve.kernels.packing import PADDED_DIMS, Tiles
from recserve.kernels.rows import TILE, Rows
from recserve.kernels.snapshot import Snapshot, bias_bounds

FORMAT = 2
META = "index.json"

_wrong_index = partial(BundleInvalid, reason=BundleReason.INDEX)


def save(snapshot: Snapshot, metric: Metric, calibration: Calibration | None, folder: Path) -> None:
    """Writes a snapshot without a tail to ``folder``, which must not exist yet or be empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidRequest(
            "folder", found=str(folder), expected="a new or empty folder", cure="Choose another or remove it."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Complete under another name first: a reader never sees half an index.
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for name, array in _arrays(snapshot).items():
            np.save(unfinished / f"{name}.npy", array)
        n_rows, dim = snapshot.base.vectors.shape
        meta = {"format": FORMAT, "n_items": len(snapshot.row_of_item), "n_rows": n_rows, "dim": dim}
        meta |= {"metric": metric, "calibration": calibration and calibration.as_dict()}
        (unfinished / META).write_text(json.dumps(meta) + "\n", encoding="utf-8")
        unfinished.chmod(0o755)
        os.replace(unfinished, folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def load(folder: Path) -> tuple[Snapshot, Metric, Calibration | None]:
    """Maps the snapshot in ``folder``; raises BundleInvalid, naming the file, if it is not whole."""
    meta = _read_meta(folder / META)
    n_rows, n_items, dim = meta["n_rows"], meta["n_items"], meta["dim"]
    n_tiles = -(-n_rows // TILE)
    padded = -(-dim // PADDED_DIMS) * PADDED_DIMS
    expected: dict[str, tuple[tuple[int, ...], Any]] = {
        "vectors": ((n_rows, dim), np.float32),
        "item_of_row": ((n_rows,), np.int32),
        "norm_bounds": ((n_tiles,), np.float32),
        "high": ((n_tiles * TILE * padded // 2,), np.uint8),
        "low": ((n_tiles * TILE * padded // 2,), np.uint8),
        "bounds": ((4, n_tiles), np.float32),
        "live": ((1, n_tiles), np.uint32),
        "row_of_item": ((n_items,), np.int32),
        "bias": ((n_items if meta["metric"] == "l2" else 0,), np.float32),
    }
    arrays = {name: _map_array(folder / f"{name}.npy", *form) for name, form in expected.items()}
    base = Rows(*(arrays[name] for name in Rows._fields))
    tiles = Tiles(*(arrays[name] for name in Tiles._fields))
    tail = Rows(*(read_only(np.empty((0, *array.shape[1:]), array.dtype)) for array in base))
    bounds = bias_bounds(arrays["bias"], base, tail)
    snapshot = Snapshot(base, tiles, tail, arrays["live"], arrays["row_of_item"], arrays["bias"], bounds)
    return snapshot, meta["metric"], _read_calibration(meta.get("calibration"))


def _arrays(snapshot: Snapshot) -> dict[str, Any]:
    one_off = {"live": snapshot.live, "row_of_item": snapshot.row_of_item, "bias": snapshot.bias}
    return snapshot.base._asdict() | snapshot.tiles._asdict() | one_off


def _read_calibration(values: Any) -> Calibration | None:
    try:
        return Calibration.from_dict(values) if values is not None else None
    except (KeyError, TypeError, ValueError) as error:
        raise _wrong_index(
            f"{META} calibration", found=str(error), expected="what calibrate has measured"
        ) from error


def _read_meta(path: Path) -> dict[str, Any]:
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _wrong_index(path.name, found=str(error), expected="the description of an index") from error
    numbers = ("format", "n_items", "n_rows", "dim")
    if not isinstance(meta, dict) or not all(isinstance(meta.get(name), int) for name in numbers):
        raise _wrong_index(path.name, found=meta, expected=f"an object with the numbers {', '.join(numbers)}")
    if meta["format"] != FORMAT:
        cure = "Save the index again with this version."
        raise _wrong_index(f"{path.name} format", found=meta["format"], expected=str(FORMAT), cure=cure)
    if meta.get("metric") not in METRICS:
        raise _wrong_index(
            f"{path.name} metric", found=meta.get("metric"), expected=f"one of {', '.join(METRICS)}"
        )
    return meta


def _map_array(path: Path, shape: tuple[int, ...], dtype: Any) -> Any:
    try:
        # An empty file cannot be mapped.
        array = np.load(path, mmap_mode="r" if 0 not in shape else None)
    except (OSError, ValueError) as error:
        raise _wrong_index(path.name, found=str(error), expected="an array") from error
    if array.shape != shape or array.dtype != dtype:
        found = f"{array.dtype} of shape {array.shape}"
        raise _wrong_index(path.name, found=found, expected=f"{np.dtype(dtype)} of shape {shape}")
    return read_only(array)
