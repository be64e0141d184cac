"""Tables too large for one file: consecutive rows in files of their own, mapped one behind the other.

Whoever gathers rows (a graph) and whoever reads all of them (retrieval) meets one array, and nothing is
copied: the header and the rows of every file but the last fill whole pages.
"""

import ctypes
import math
import mmap
import os
import sys
from collections.abc import Container, Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from recserve.errors import InvalidRequest

# What file systems, object stores and tools take as one file without a thought.
SHARD_BYTES = 1 << 31
# Machines with larger pages copy the files together.
PAGE = 4096
MAP_FIXED = 0x10
PREAMBLE = 10  # Of a .npy file: the magic word, the version and the length of the header.


def part_name(name: str, number: int) -> str:
    """Returns the file of a part, counted from 1; the first has the table's name, which graphs refer to."""
    return name if number == 1 else f"{name.removesuffix('.npy')}.{number}.npy"


def files_of(name: str, listed: Container[str]) -> list[str]:
    """Returns the files of a table, in order: its first, and those that are ``listed`` without a gap."""
    names = [name]
    while (following := part_name(name, len(names) + 1)) in listed:
        names.append(following)
    return names


def split(name: str, table: NDArray[Any], shard_bytes: int) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yields files and rows of ``table`` (n, width), C order, each of at most ``shard_bytes``.

    Raises :class:`InvalidRequest` when those are too few for rows that fill whole pages.
    """
    if table.nbytes <= shard_bytes:
        yield name, table
        return
    step = PAGE // math.gcd(PAGE, table.strides[0])
    n_rows = shard_bytes // table.strides[0] // step * step
    if n_rows == 0:
        least = step * table.strides[0]
        raise InvalidRequest("shard_bytes", found=shard_bytes, expected=f"at least {least} for {name}")
    for number, begin in enumerate(range(0, len(table), n_rows), start=1):
        yield part_name(name, number), table[begin : begin + n_rows]


def save_shard(file: BinaryIO, rows: NDArray[Any]) -> None:
    """Writes ``rows`` as .npy, with a header of a whole page."""
    header = repr(np.lib.format.header_data_from_array_1_0(rows)).encode("latin1")
    length = PAGE - PREAMBLE
    file.write(np.lib.format.magic(1, 0) + length.to_bytes(2, "little"))
    file.write(header.ljust(length - 1) + b"\n")
    file.write(rows.data)


def joined(shards: Sequence[np.memmap[Any, Any]]) -> NDArray[Any]:
    """Returns the rows of ``shards``, each the map of a file, as one array that may not be written.

    It is a map of the files where their data fill whole pages and the system can lay maps side by side
    (Linux, macOS), else a copy.
    """
    whole = all(one.offset % PAGE == 0 for one in shards) and all(
        one.nbytes % PAGE == 0 for one in shards[:-1]
    )
    if whole and PAGE % mmap.PAGESIZE == 0 and sys.platform in ("linux", "darwin"):
        array = _side_by_side(shards)
    else:
        array = np.concatenate(shards)
    array.flags.writeable = False
    return array


def _side_by_side(shards: Sequence[np.memmap[Any, Any]]) -> NDArray[Any]:
    area = mmap.mmap(-1, sum(one.nbytes for one in shards))
    system = ctypes.CDLL(None, use_errno=True)
    system.mmap.restype = ctypes.c_void_p
    system.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
    place = ctypes.addressof(ctypes.c_char.from_buffer(area))
    for shard in shards:
        if shard.nbytes == 0:
            continue
        descriptor = os.open(str(shard.filename), os.O_RDONLY | os.O_CLOEXEC)
        try:
            # Over the pages of ``area``, which unmaps them with its own.
            found = system.mmap(
                place, shard.nbytes, mmap.PROT_READ, mmap.MAP_SHARED | MAP_FIXED, descriptor, shard.offset
            )
            if found != place:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), shard.filename)
        finally:
            os.close(descriptor)
        place += shard.nbytes
    shape = (sum(len(one) for one in shards), *shards[0].shape[1:])
    return np.frombuffer(area, shards[0].dtype).reshape(shape)
