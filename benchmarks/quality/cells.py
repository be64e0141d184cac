"""What one contender answered for one seed, kept between runs: an interrupted measurement goes on."""

import hashlib
import io
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recserve.benchmarks.environment import environment
from recserve.benchmarks.quality.bars import Contender, Row
from recserve.benchmarks.quality.peer import ask_peer
from recserve.benchmarks.quality.protocol import Protocol, Values
from recserve.files import write_whole

OURS = "recserve"
SECONDS, TOLD = "_seconds", "_told"


@dataclass(frozen=True, slots=True)
class Cell:
    """``values``: see :class:`Protocol`; ``seconds``: of training and answering, tuning included.

    ``told``: where and when it was measured, see :func:`environment`.
    """

    values: Values
    seconds: float
    told: Mapping[str, Any]


class Cells:
    """The cells of all rows under one folder; rows that share a contender on one split share its cells."""

    def __init__(self, folder: Path, environments: Path) -> None:
        self._folder = folder
        self._environments = environments

    def find(self, row: Row, contender: Contender, seed: int) -> Cell | None:
        """Returns the cell that was measured before with the same settings."""
        path = self._path(row, contender, seed)
        if not path.is_file():
            return None
        with np.load(path) as file:
            values = {name: file[name] for name in file if name not in (SECONDS, TOLD)}
            return Cell(values, float(file[SECONDS]), json.loads(str(file[TOLD])))

    def measure(self, row: Row, contender: Contender, seed: int, protocol: Protocol) -> Cell:
        """Runs a contender and keeps the cell."""
        start = time.perf_counter()
        if contender.library == OURS:
            values = protocol.ours(contender.model, contender.settings, seed)
        else:
            values = protocol.theirs(lambda arrays: ask_peer(contender, arrays, seed, self._environments))
        told = environment(("numpy", "numba", "torch", "polars"))
        cell = Cell(values, time.perf_counter() - start, told)
        path = self._path(row, contender, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {**values, SECONDS: cell.seconds, TOLD: json.dumps(told)}
        np.savez_compressed(buffer, **arrays)
        write_whole(path, buffer.getbuffer())
        return cell

    def _path(self, row: Row, contender: Contender, seed: int) -> Path:
        told: Mapping[str, Any] = {"settings": contender.settings, "grid": contender.grid}
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:8]
        split, name = (
            re.sub(r"\W+", "-", text)
            for text in (f"{row.data} {row.protocol}", f"{contender.name} {digest} {seed}")
        )
        return self._folder / split / f"{name}.npz"
