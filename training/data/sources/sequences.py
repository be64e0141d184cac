"""Files with a line per user: the user, then the items in time order, all separated by blanks.

The form in which S3-Rec, SASRec and many who followed them publish their data. There are no times: an item's
place in its line stands for one, so that the order is kept and the temporal split means nothing.
"""

from pathlib import Path

import polars as pl

from recserve.errors import DataError
from recserve.training.data.columns import ITEM_ID, TIMESTAMP, USER_ID

NAME = "sequences"


def read_sequences(path: Path) -> pl.DataFrame:
    """Returns the events of a file: user_id str, item_id str, timestamp int64 (1 for a user's first item).

    Raises DataError for a file that cannot be read or a line without an item.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        found = "not UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror or "not readable"
        raise DataError(f"file {path}", found=found, expected="a readable file of sequences") from error
    users: list[str] = []
    items: list[str] = []
    places: list[int] = []
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if len(fields) == 1:
            raise DataError(
                f"line {number} of {path.name}", found="one field", expected="a user and at least one item"
            )
        users += fields[:1] * (len(fields) - 1)
        items += fields[1:]
        places += range(1, len(fields))
    if not items:
        raise DataError(f"file {path}", found="empty", expected="a line per user")
    return pl.DataFrame({USER_ID: users, ITEM_ID: items, TIMESTAMP: places})
