"""Captured traffic as a file: when something was asked, of what kind and size, and whether by the same user.

A trace names nobody. Its subjects are pseudonyms under a key that was never written: equal within one trace,
without relation to any other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recserve.errors import DataError

RECOMMEND, SIMILAR, FEEDBACK = "recommend", "similar", "feedback"
KINDS = (RECOMMEND, SIMILAR, FEEDBACK)
# The subject of a request that names no user.
NOBODY = 0
SCHEMA = pa.schema(
    [
        ("seconds", pa.float64()),
        ("kind", pa.string()),
        ("subject", pa.uint64()),
        ("k", pa.int32()),
        ("n_items", pa.int32()),
    ]
)


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests by their arrival, one a row.

    seconds: since the first · kinds: out of KINDS · subjects: pseudonym of the user (of ``similar``: the
    item), NOBODY for none · k: list length · n_items: of the history that it brought, or of the events.
    """

    seconds: NDArray[np.float64]
    kinds: Sequence[str]
    subjects: NDArray[np.uint64]
    k: NDArray[np.int32]
    n_items: NDArray[np.int32]


def read_trace(path: Path) -> Trace:
    """Reads what a server captured; raises :class:`DataError` for another file."""
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise DataError(
            f"trace {path}", found="no Parquet file", expected="what a server captured"
        ) from error
    if not table.schema.equals(SCHEMA):
        raise DataError(f"columns of {path}", found=table.schema.names, expected=f"{SCHEMA.names}")
    table = table.sort_by("seconds")
    kinds = table.column("kind").to_pylist()
    if not kinds or not set(kinds) <= set(KINDS):
        raise DataError(f"kinds of {path}", found=sorted(set(kinds)), expected=f"some of {KINDS}")
    seconds = table.column("seconds").to_numpy()
    columns = (table.column(name).to_numpy() for name in ("subject", "k", "n_items"))
    return Trace(seconds - seconds[0], kinds, *columns)
