"""A folder of Parquet files as one table, read a part at a time and never whole."""

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from recserve.errors import DataError
from recserve.training.data.columns import ColumnMap

ROWS_PER_PART = 200_000


def read_shards(folder: Path, columns: ColumnMap) -> Iterator[pl.DataFrame]:
    """Yields the columns that events are made of, the files in the order of their names.

    Raises :class:`DataError` for a folder without Parquet files and for a file that is damaged.
    """
    shards = sorted(path for path in folder.rglob("*.parquet") if path.is_file())
    if not shards:
        raise DataError(f"data folder {folder}", found="without a .parquet file", expected="Parquet files")
    for shard in shards:
        try:
            with pq.ParquetFile(shard) as file:
                wanted = list(columns.resolve(file.schema_arrow.names).values())
                for batch in file.iter_batches(ROWS_PER_PART, columns=wanted, use_threads=False):
                    table = pl.from_arrow(pa.Table.from_batches([batch]))
                    yield table if isinstance(table, pl.DataFrame) else table.to_frame()
        except (pa.ArrowException, OSError) as error:
            first_line = str(error).split("\n", 1)[0]
            raise DataError(
                f"data file {shard}",
                found=f"damaged Parquet data ({first_line})",
                expected="a complete Parquet file",
                cure="Write it again.",
            ) from error
