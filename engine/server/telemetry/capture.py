"""A sample of the traffic as a file, to be replayed: what was asked when, without who (engine/traces.py)."""

import hmac
import os
import random
import secrets
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import SimpleQueue
from types import MappingProxyType
from typing import Any

import grpc
import pyarrow as pa
import pyarrow.parquet as pq
import structlog
from google.protobuf.message import DecodeError

from recserve.engine.server.call import Call
from recserve.engine.server.chain import Observer
from recserve.engine.traces import FEEDBACK, NOBODY, RECOMMEND, SCHEMA, SIMILAR
from recserve.engine.types import DEFAULT_K
from recserve.errors import ConfigError
from recserve.proto.feedback_pb2 import RecordRequest

log = structlog.get_logger("recserve.capture")

# Requests that are written at a time.
BLOCK = 4096
SUBJECT_BYTES = 8

# kind, subject, list length, number of items.
Said = tuple[str, str, int, int]
Row = tuple[float, str, int, int, int]


def _of_recommend(message: Any) -> Said:
    return RECOMMEND, message.user_id, message.k if message.HasField("k") else DEFAULT_K, len(message.history)


def _of_similar(message: Any) -> Said:
    return SIMILAR, message.item_id, message.k if message.HasField("k") else DEFAULT_K, 0


def _of_feedback(request: Any) -> Said | None:
    try:
        # Over gRPC as bytes: the log reads them.
        message = RecordRequest.FromString(request) if isinstance(request, bytes) else request
    except DecodeError:
        return None
    return FEEDBACK, message.events[0].user_id if message.events else "", 0, len(message.events)


READERS: Mapping[str, Callable[[Any], Said | None]] = MappingProxyType(
    {
        "/recserve.v1.Recommender/Recommend": _of_recommend,
        "/recserve.v1.Recommender/SimilarItems": _of_similar,
        "/recserve.v1.Feedback/Record": _of_feedback,
    }
)


class Capture(Observer):
    """Writes every request with the probability ``share``, ``max_requests`` of them at most.

    The file appears whole, when so many were seen or the server stops, in place of an older one. Requests
    that were refused before they were read are not in it. A disk that fails ends the capture, not the server.
    """

    def __init__(self, path: Path, share: float, max_requests: int) -> None:
        """Raises :class:`ConfigError` where ``path`` cannot be written."""
        self._path = path
        self._partial = path.with_name(f"{path.name}.partial")
        self._share = share
        # The one place where it is: pseudonyms of two runs have nothing in common.
        self._key = secrets.token_bytes(32)
        try:
            self._file = self._partial.open("wb")
        except OSError as error:
            raise ConfigError(
                "telemetry.capture", found=str(path), expected="a file that can be written", cure=str(error)
            ) from error
        # Guards the two fields below.
        self._lock = threading.Lock()
        self._left = max_requests
        self._rows: list[Row] = []
        self._blocks: SimpleQueue[list[Row] | None] = SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="recserve-capture", daemon=True)
        self._writer.start()

    def on_answered(self, call: Call, code: grpc.StatusCode, seconds: float) -> None:
        """Takes the call into the sample, or not."""
        read = READERS.get(call.method.path)
        if read is None or call.request is None or random.random() >= self._share:
            return
        said = read(call.request)
        if said is None:
            return
        kind, subject, k, n_items = said
        row = (call.received_at, kind, self._pseudonym(kind, subject), k, n_items)
        with self._lock:
            if self._left <= 0:
                return
            self._left -= 1
            self._rows.append(row)
            if len(self._rows) < BLOCK and self._left:
                return
            block, self._rows = self._rows, []
            self._blocks.put(block)
            if not self._left:
                self._blocks.put(None)

    def _pseudonym(self, kind: str, subject: str) -> int:
        if not subject:
            return NOBODY
        # Users and items are apart: equal ids of both say nothing.
        name = f"{'item' if kind == SIMILAR else 'user'} {subject}".encode()
        return int.from_bytes(hmac.digest(self._key, name, "sha256")[:SUBJECT_BYTES], "little")

    def close(self) -> None:
        """Writes what is left and finishes the file."""
        with self._lock:
            self._left = 0
            self._blocks.put(self._rows)
            self._rows = []
        self._blocks.put(None)
        self._writer.join()

    def _write(self) -> None:
        try:
            with self._file, pq.ParquetWriter(self._file, SCHEMA, compression="zstd") as writer:
                while (block := self._blocks.get()) is not None:
                    if block:
                        columns = [list(column) for column in zip(*block, strict=True)]
                        writer.write_table(pa.table(columns, schema=SCHEMA))
            os.replace(self._partial, self._path)
            log.info("traffic captured", file=str(self._path))
        except (OSError, pa.ArrowException):
            with self._lock:
                self._left = 0
            log.exception("traffic is not captured any more", file=str(self._path))
