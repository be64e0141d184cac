"""An append-only file of refusals and admin actions, in which every line guards the ones before.

One JSON object per line. ``hash`` is the SHA-256 of the record without it, and the record holds ``prev``, the
hash of the line before: whoever changes, moves or drops a line breaks the chain there. Cutting off the end
leaves a shorter good chain; a hash noted elsewhere (`recserve audit verify` prints the last one) shows that.
Every append reads the end of the file under a lock, so that several processes may share it and a rotated
file starts a new chain.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from recserve.errors import CheckFailed

START = "0" * 64
# Longer than any record: their fields are bounded.
MAX_LINE_BYTES = 4096
MAX_FIELD_CHARACTERS = 256


class AuditLog:
    """Appends records to one file, mode 0600; safe for threads and processes."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, record: Mapping[str, object], *, durable: bool = False) -> None:
        """Adds a record; ``durable`` returns after it is on the disk.

        Raises OSError when it cannot be written, :class:`CheckFailed` when the file's last line is not whole.
        """
        descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            line = _line(
                {**{key: _bounded(value) for key, value in record.items()}, "prev": self._last(descriptor)}
            )
            if os.write(descriptor, line) != len(line):
                raise OSError(f"audit log {self._path}: written in part")
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _last(self, descriptor: int) -> str:
        size = os.fstat(descriptor).st_size
        if not size:
            return START
        tail = os.pread(descriptor, MAX_LINE_BYTES, max(0, size - MAX_LINE_BYTES))
        line = tail.removesuffix(b"\n").rpartition(b"\n")[2]
        try:
            if not tail.endswith(b"\n"):
                raise ValueError("torn")
            return str(json.loads(line)["hash"])
        except (ValueError, KeyError, TypeError) as error:
            raise CheckFailed(
                f"last line of audit log {self._path}",
                found="not whole",
                expected="a record",
                cure="Keep the file as evidence and move it away: the next record starts a new one.",
            ) from error


@dataclass(frozen=True, slots=True)
class Verified:
    """A whole chain: how many records, and the hash of the last one."""

    n_records: int
    last_hash: str


def verify(path: Path, *, contains: str = "") -> Verified:
    """Checks every line of an audit log; ``contains``: a hash, noted earlier, that must be among them.

    Raises :class:`CheckFailed` naming the first broken line.
    """
    previous, n_records, seen = START, 0, not contains
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            hash_ = _check(line, previous)
            if not hash_:
                raise CheckFailed(
                    f"line {number} of {path}",
                    found="changed, moved or missing its forerunner",
                    expected="as written",
                )
            previous, n_records = hash_, number
            seen = seen or hash_ == contains
    if not seen:
        raise CheckFailed(
            f"hash {contains} in {path}", found="missing", expected="there", cure="Lines were cut off."
        )
    return Verified(n_records, previous)


def _check(line: bytes, previous: str) -> str:
    """Returns the hash of a good line, else an empty text."""
    try:
        record = json.loads(line)
        given = record.pop("hash")
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""
    whole = record.get("prev") == previous and _line(record) == line
    return str(given) if whole else ""


def _line(record: dict[str, object]) -> bytes:
    hash_ = hashlib.sha256(_canonical(record)).hexdigest()
    return _canonical({**record, "hash": hash_}) + b"\n"


def _canonical(record: dict[str, object]) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode()


def _bounded(value: object) -> object:
    return value[:MAX_FIELD_CHARACTERS] if isinstance(value, str) else value
