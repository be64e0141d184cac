"""Tables and arrays that lie in files: what is read of them is in memory, and the system takes it back."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

# From here on an array lies in a file without a name, in the folder for temporary files (TMPDIR).
MAPPED_BYTES = 16_000_000


def write_mapped(table: pl.DataFrame, path: Path) -> None:
    """Writes ``table`` as one uncompressed Arrow batch."""
    batch = table.to_arrow().combine_chunks()
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_table(batch)


def read_mapped(path: Path) -> pl.DataFrame:
    """Returns the table of :func:`write_mapped`; its numbers are read from the file when they are used.

    Raises OSError or pyarrow.ArrowException for a file that is missing or damaged.
    """
    with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as reader:
        table = pl.from_arrow(reader.read_all())
    return table if isinstance(table, pl.DataFrame) else table.to_frame()


def empty(n: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Returns an array (n,) to be written, in a file of its own where it is large."""
    kind = np.dtype(dtype)
    if n * kind.itemsize < MAPPED_BYTES:
        return np.empty(n, kind)
    # The mapping keeps the file, which nobody else can open and which goes with the array.
    with tempfile.TemporaryFile(prefix="recserve-") as file:
        file.truncate(n * kind.itemsize)
        return np.memmap(file, kind, "r+", shape=(n,))
