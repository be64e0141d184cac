"""The bijection between external string ids and internal row indices, usable from a memory map.

Ids are an Arrow string column (row = index). The way back is a sorted column of 64-bit hashes with the
row of each: a lookup is one binary search and one string comparison, needs no Python dictionary, and N
processes share the pages. Ids are byte-exact: nothing is normalised.
"""

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recserve.errors import BundleInvalid, BundleReason

MAX_ID_BYTES = 256
# The columns of the lookup's Arrow file.
LOOKUP_COLUMNS = {"hash": pa.uint64(), "row": pa.int32()}
# Ids that a loaded lookup must find: enough to notice that it belongs to another set of ids. Hashing all
# of them would cost a microsecond each.
N_PROBES = 64


class Vocabulary(Sequence[str]):
    """ids ↔ indices over Arrow columns; read-only and safe to share between threads."""

    def __init__(self, ids: pa.Array, hashes: NDArray[np.uint64], rows: NDArray[np.int32]) -> None:
        """``ids`` (n,) large_string; ``hashes`` (n,) ascending; ``rows`` (n,) the index of each hash."""
        if not len(ids) == len(hashes) == len(rows):
            raise BundleInvalid(
                "vocabulary",
                found=f"{len(ids)} ids and {len(hashes)} hashes",
                expected="as many of both",
                reason=BundleReason.LOOKUP,
            )
        self._ids = ids
        _, offsets, data = ids.buffers()
        bytes_ = np.frombuffer(b"" if data is None else data, np.uint8)
        # Arrow may leave out the one offset of an empty column.
        all_offsets = np.zeros(1, np.int64) if offsets is None else np.frombuffer(offsets, np.int64)
        self._utf8 = (all_offsets[ids.offset :][: len(ids) + 1], bytes_)
        self._text = memoryview(bytes_)  # type: ignore[arg-type]
        self._hashes = hashes
        self._rows = rows

    @classmethod
    def build(cls, ids: Iterable[str]) -> "Vocabulary":
        """Indexes ``ids`` in their order; raises :class:`BundleInvalid` when one stands twice."""
        column = pa.array(ids, type=pa.large_string())
        _check_lengths(column, "ids")
        _check_unique(column, "ids")
        hashes = _hashes(column.to_pylist())
        rows = np.argsort(hashes, kind="stable").astype(np.int32)
        return cls(column, hashes[rows], rows)

    def check(self, ids_file: str, lookup_file: str) -> None:
        """Raises :class:`BundleInvalid` unless ids and lookup are one bijection.

        Vectorised: of the hashes themselves only a few are computed again.
        """
        _check_lengths(self._ids, f"ids of {ids_file}")
        _check_unique(self._ids, f"ids of {ids_file}")
        n = len(self)
        if np.any(self._hashes[1:] < self._hashes[:-1]):
            raise BundleInvalid(
                f"column hash of {lookup_file}",
                found="out of order",
                expected="ascending",
                reason=BundleReason.LOOKUP,
            )
        reached = np.zeros(n, np.bool_)
        if n and self._rows.min() >= 0 and self._rows.max() < n:
            reached[self._rows] = True
        if not reached.all():
            raise BundleInvalid(
                f"column row of {lookup_file}",
                found="incomplete",
                expected=f"each of 0 to {n - 1} once",
                reason=BundleReason.LOOKUP,
            )
        probes = np.unique(np.linspace(0, n - 1, min(n, N_PROBES)).astype(np.int32))
        if not np.array_equal(self.indices(self.ids(probes)), probes):
            raise BundleInvalid(
                f"column hash of {lookup_file}",
                found="of other ids",
                expected=f"of the ids in {ids_file}",
                reason=BundleReason.LOOKUP,
            )

    def extended(self, ids: Sequence[str]) -> "Vocabulary":
        """Returns a vocabulary with ``ids``, none of them known, behind these; copies the columns."""
        new = Vocabulary.build(ids)
        places = self._hashes.searchsorted(new._hashes, side="right")
        return Vocabulary(
            pa.concat_arrays([self._ids, new._ids]),
            np.insert(self._hashes, places, new._hashes),
            np.insert(self._rows, places, new._rows + np.int32(len(self))),
        )

    def lookup_table(self) -> pa.Table:
        """Returns the columns ``hash`` (uint64, ascending) and ``row`` (int32) that the bundle stores."""
        return pa.table({"hash": self._hashes, "row": self._rows})

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        """Returns the id of an index, or those of a slice."""
        if isinstance(index, slice):
            return self._ids[index].to_pylist()  # type: ignore[no-any-return]
        return self._ids[index].as_py()  # type: ignore[no-any-return]

    def ids(self, indices: Sequence[int] | NDArray[np.int32]) -> list[str]:
        """Returns the ids of ``indices`` (each in 0..n-1)."""
        rows = np.asarray(indices, np.int64)
        offsets, _ = self._utf8
        ends = zip(offsets[rows].tolist(), offsets[rows + 1].tolist(), strict=True)
        # Slices of the column's own bytes: a third of the time of Arrow's take and to_pylist.
        return [str(self._text[start:end], "utf-8") for start, end in ends]

    def _id(self, row: int) -> str:
        offsets, _ = self._utf8
        return str(self._text[offsets[row] : offsets[row + 1]], "utf-8")

    def utf8(self) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """Returns (offsets, bytes): id i is ``bytes[offsets[i]:offsets[i + 1]]``. Read-only, not copied."""
        return self._utf8

    def index_of(self, id_: str) -> int:
        """Returns the index of ``id_``, or −1 when it is unknown."""
        wanted = _hashes([id_])
        return self._walk(int(self._hashes.searchsorted(wanted)[0]), int(wanted[0]), id_)

    def indices(self, ids: Sequence[str]) -> NDArray[np.int32]:
        """Returns the index of each id as (n,) int32, −1 for the unknown ones."""
        found = np.full(len(ids), -1, dtype=np.int32)
        if not len(ids) or not len(self):
            return found
        wanted = _hashes(ids)
        starts = self._hashes.searchsorted(wanted)
        np.minimum(starts, len(self) - 1, out=starts)
        near = np.flatnonzero(self._hashes[starts] == wanted)
        found[near] = rows = self._rows[starts[near]]
        for i, text in zip(near.tolist(), self.ids(rows), strict=True):
            # Another id in its place: two that share a hash, or one of them asked and not there.
            if text != ids[i]:
                found[i] = self._walk(int(starts[i]), int(wanted[i]), ids[i])
        return found

    def hashes(self, indices: Sequence[int] | NDArray[np.int32]) -> NDArray[np.uint64]:
        """Returns what stands for the ids of ``indices`` in every bundle: the hash of each, (n,) uint64."""
        return _hashes(self.ids(indices))

    def with_hashes(self, hashes: NDArray[np.uint64]) -> NDArray[np.int32]:
        """Returns the indices (m,) int32 of the ids that have one of ``hashes``; not all need to be known."""
        starts = self._hashes.searchsorted(hashes)
        lengths = self._hashes.searchsorted(hashes, side="right") - starts
        # Every id of a run of equal hashes.
        places = np.repeat(starts - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())
        rows: NDArray[np.int32] = self._rows[places]
        return rows

    def _walk(self, start: int, wanted: int, id_: str) -> int:
        """Looks for ``id_`` in the run of equal hashes that begins at ``start``."""
        while start < len(self._hashes) and int(self._hashes[start]) == wanted:
            row = int(self._rows[start])
            if self._id(row) == id_:
                return row
            start += 1
        return -1


def _check_lengths(ids: pa.Array, name: str) -> None:
    lengths = pc.min_max(pc.binary_length(ids)).as_py()
    if len(ids) and not 1 <= lengths["min"] <= lengths["max"] <= MAX_ID_BYTES:
        raise BundleInvalid(
            name,
            found=f"{lengths['min']} to {lengths['max']} bytes long",
            expected=f"1 to {MAX_ID_BYTES} bytes each",
            reason=BundleReason.IDS,
        )


def _check_unique(ids: pa.Array, name: str) -> None:
    if pc.count_distinct(ids).as_py() == len(ids):
        return
    counts = pc.value_counts(ids)
    twice = counts.field("values").filter(pc.greater(counts.field("counts"), 1))[0]
    raise BundleInvalid(
        name, found=f"{twice.as_py()!r} given twice", expected="unique", reason=BundleReason.IDS
    )


def _hashes(ids: Iterable[str]) -> NDArray[np.uint64]:
    return np.frombuffer(b"".join(map(_digest, ids)), "<u8")


def _digest(text: str) -> bytes:
    # surrogatepass: a lone surrogate is not valid UTF-8, so no stored id equals it, but it must not raise.
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
