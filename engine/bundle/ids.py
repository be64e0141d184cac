"""What an id and a timestamp may be, wherever they come from."""

from typing import Any

import numpy as np

from recserve.engine.bundle.vocabulary import MAX_ID_BYTES
from recserve.errors import InvalidRequest

# The end of the year 9999: later is a unit mistaken (milliseconds), not a date.
MAX_TIMESTAMP = 253_402_300_799


def is_integer(number: Any) -> bool:
    """Returns whether ``number`` is one, of Python or NumPy, and no truth value."""
    return type(number) is int or isinstance(number, np.integer)


def check_timestamp(name: str, timestamp: int) -> None:
    """Raises :class:`InvalidRequest` unless ``timestamp`` is whole seconds, 0 to the end of year 9999."""
    if not is_integer(timestamp) or not 0 <= timestamp <= MAX_TIMESTAMP:
        raise InvalidRequest(
            name, found=timestamp, expected=f"0 to {MAX_TIMESTAMP}", cure="Seconds since the epoch."
        )


def check_id(name: str, id_: str, *, may_be_empty: bool = False) -> None:
    """Raises :class:`InvalidRequest` unless ``id_`` is a string of 1..256 bytes of UTF-8."""
    if not isinstance(id_, str):
        raise InvalidRequest(name, found=type(id_).__name__, expected="a string")
    # A character has at most four bytes: most ids need no encoding to be known as short.
    if len(id_) > MAX_ID_BYTES // 4 and (n_bytes := len(id_.encode("utf-8", "surrogatepass"))) > MAX_ID_BYTES:
        raise InvalidRequest(name, found=f"{n_bytes} bytes long", expected=f"at most {MAX_ID_BYTES} bytes")
    if not id_ and not may_be_empty:
        raise InvalidRequest(name, found="empty", expected=f"1 to {MAX_ID_BYTES} bytes")
