"""gRPC calls over one HTTP/2 connection, as few instructions per call as Python allows.

grpcio's client reaches some thousand calls per second and core and would measure itself. A load generator
sends few different header blocks and mostly gets few different ones back, so the work of a call is two frames
packed, three unpacked and two dictionary look-ups. Flow control, settings, pings, resets, GOAWAY and the
dynamic table of HPACK are observed: RFC 9113, RFC 7541, and gRPC's PROTOCOL-HTTP2.md.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import hpack

from recserve.benchmarks.load.connection import (
    CANCELLED,
    INTERNAL,
    OK,
    UNAVAILABLE,
    UNKNOWN,
    Ended,
    Wire,
)
from recserve.errors import CheckFailed

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE = 1, 2, 3, 4
REFUSED_STREAM, CANCEL = 0x7, 0x8
DEFAULT_WINDOW = 65_535
MAX_WINDOW = 2**31 - 1
MAX_FRAME = 16_384
# How much is read before the server is told that the window is open again.
WINDOW_STEP = 1 << 28
DEFAULT_TABLE = 4096
# What an answer without grpc-status means: http-grpc-status-mapping.md of the gRPC project.
CODE_OF_HTTP = {
    "200": OK,
    "400": INTERNAL,
    "401": 16,
    "403": 7,
    "404": 12,
    "429": UNAVAILABLE,
    "502": UNAVAILABLE,
    "503": UNAVAILABLE,
    "504": UNAVAILABLE,
}
# Length and kind share the first four bytes; flags; stream.
FRAME = struct.Struct(">IBI")
GRPC_PREFIX = struct.Struct(">BI")


@dataclass(frozen=True, slots=True)
class GrpcMessage:
    """One request that can be sent any number of times."""

    path: str
    body: bytes


class GrpcConnection(Wire):
    """Sends ``messages`` by number; every call has the deadline of ``timeout`` seconds in its headers."""

    def __init__(
        self,
        host: str,
        port: int,
        messages: Sequence[GrpcMessage],
        timeout: float,
        headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__(host, port)
        self._encoder, self._decoder = hpack.Encoder(), hpack.Decoder()
        self._decoded: dict[bytes, int] = {}
        common = [
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", f"{host}:{port}"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("grpc-timeout", f"{max(1, round(timeout * 1e3))}m"),
            *headers,
        ]
        # Pseudo-header fields come first.
        self._headers = {message.path: [(":path", message.path), *common] for message in messages}
        self._sent_paths: set[str] = set()
        self._blocks: dict[str, bytes] = {}
        self._messages = [(message.path, _framed(message.body)) for message in messages]
        self._longest = max(len(body) for _, body in self._messages)
        if self._longest > MAX_FRAME:
            raise CheckFailed("request", found=f"{self._longest} bytes", expected=f"at most {MAX_FRAME}")
        self._stream = 1
        self._tags: dict[int, int] = {}
        self._streams: dict[int, int] = {}
        self._kept: dict[int, bytes] = {}
        self._max_streams = 100
        self._window = DEFAULT_WINDOW
        self._unacknowledged = 0
        self._in = b""
        self._block: tuple[int, int, bytes] | None = None
        self._ready = self._draining = False
        settings = ((ENABLE_PUSH, 0), (INITIAL_WINDOW_SIZE, MAX_WINDOW))
        payload = b"".join(struct.pack(">HI", *setting) for setting in settings)
        self.out += PREFACE + _frame(SETTINGS, 0, 0, payload)
        self.out += _frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", MAX_WINDOW - DEFAULT_WINDOW))

    def can_send(self, message: int) -> bool:
        """Whether the server has said hello, and its limits on streams and bytes allow one more call."""
        return (
            self._ready
            and len(self._tags) < self._max_streams
            and self._window >= len(self._messages[message][1])
            and not self._draining
            and self.is_open
        )

    def send(self, tag: int, message: int, keep: bool) -> None:
        """Queues a call."""
        path, body = self._messages[message]
        stream, self._stream = self._stream, self._stream + 2
        block = self._blocks.get(path) or self._encode_headers(path)
        out = self.out
        out += FRAME.pack(len(block) << 8 | HEADERS, END_HEADERS, stream)
        out += block
        out += FRAME.pack(len(body) << 8 | DATA, END_STREAM, stream)
        out += body
        self._window -= len(body)
        self._tags[stream] = tag
        self._streams[tag] = stream
        if keep:
            self._kept[stream] = b""

    def _encode_headers(self, path: str) -> bytes:
        """Writes the headers of a path. The first time they enter the table of both sides."""
        block: bytes = self._encoder.encode(self._headers[path])
        if path in self._sent_paths:
            # Nothing but references now, which are the same each time until the table grows.
            self._blocks[path] = block
        else:
            self._sent_paths.add(path)
            self._blocks.clear()
        return block

    def receive(self) -> Sequence[Ended]:
        """Reads frames; a connection that ends fails all its calls as UNAVAILABLE."""
        data = self._in + self.read()
        ended: list[Ended] = []
        position, size = 0, len(data)
        while size - position >= FRAME.size:
            head, flags, stream = FRAME.unpack_from(data, position)
            begin = position + FRAME.size
            end = begin + (head >> 8)
            if end > size:
                break
            position = end
            kind = head & 0xFF
            if kind == HEADERS:
                self._on_headers(stream, flags, _unpadded(data[begin:end], flags), ended)
            elif kind == DATA:
                self._on_data(stream, flags, data[begin:end], ended)
            else:
                self._on_control(kind, flags, stream, data[begin:end], ended)
        self._in = data[position:]
        if not self.is_open:
            ended += [self._end(stream, UNAVAILABLE) for stream in list(self._tags)]
        return ended

    def _on_headers(self, stream: int, flags: int, block: bytes, ended: list[Ended]) -> None:
        if not flags & END_HEADERS:
            self._block = (stream, flags, block)
            return
        # Decoded whoever it is for: the table must follow.
        code = self._decoded.get(block)
        if code is None:
            code = self._decode(block)
        if flags & END_STREAM and stream in self._tags:
            ended.append(self._end(stream, code))

    def _decode(self, block: bytes) -> int:
        """Returns the gRPC code that a block of headers means."""
        table = self._decoder.header_table
        before = list(table.dynamic_entries)
        try:
            fields = dict(self._decoder.decode(block))
        except hpack.HPACKError as error:
            raise CheckFailed("headers from the server", found=str(error), expected="HPACK") from error
        if list(table.dynamic_entries) != before:
            # References mean something else now; the block itself, sent again, may too.
            self._decoded.clear()
        status = fields.get("grpc-status")
        if status is not None:
            code = int(status) if str(status).isdigit() else UNKNOWN
        else:
            code = CODE_OF_HTTP.get(str(fields.get(":status", "200")), UNKNOWN)
        if list(table.dynamic_entries) == before:
            self._decoded[block] = code
        return code

    def _on_data(self, stream: int, flags: int, payload: bytes, ended: list[Ended]) -> None:
        self._unacknowledged += len(payload)
        if self._unacknowledged >= WINDOW_STEP:
            self.out += _frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", self._unacknowledged))
            self._unacknowledged = 0
        if stream in self._kept:
            self._kept[stream] += _unpadded(payload, flags)
        if flags & END_STREAM and stream in self._tags:
            # An answer without trailers has no status.
            ended.append(self._end(stream, INTERNAL))

    def _on_control(self, kind: int, flags: int, stream: int, payload: bytes, ended: list[Ended]) -> None:
        if kind == CONTINUATION and self._block is not None:
            first, first_flags, block = self._block
            self._on_headers(first, first_flags | flags & END_HEADERS, block + payload, ended)
            if flags & END_HEADERS:
                self._block = None
        elif kind == SETTINGS and not flags & ACK:
            for name, value in struct.iter_unpack(">HI", payload):
                self._on_setting(name, value)
            self._ready = True
            self.out += _frame(SETTINGS, ACK, 0, b"")
        elif kind == WINDOW_UPDATE and stream == 0:
            self._window += struct.unpack(">I", payload)[0]
        elif kind == PING and not flags & ACK:
            self.out += _frame(PING, ACK, 0, payload)
        elif kind == RST_STREAM and stream in self._tags:
            reason = struct.unpack(">I", payload)[0]
            code = {REFUSED_STREAM: UNAVAILABLE, CANCEL: CANCELLED}.get(reason, INTERNAL)
            ended.append(self._end(stream, code))
        elif kind == GOAWAY:
            # The calls up to the last stream are still answered; no new ones here.
            last = struct.unpack_from(">I", payload)[0] & MAX_WINDOW
            self._draining = True
            ended += [self._end(late, UNAVAILABLE) for late in list(self._tags) if late > last]
        self.is_open = self.is_open and not (self._draining and not self._tags)

    def _on_setting(self, name: int, value: int) -> None:
        if name == MAX_CONCURRENT_STREAMS:
            self._max_streams = value
        elif name == HEADER_TABLE_SIZE:
            self._encoder.header_table_size = min(value, DEFAULT_TABLE)
        elif name == INITIAL_WINDOW_SIZE and value < self._longest:
            raise CheckFailed("stream window of the server", found=value, expected=f"{self._longest} or more")

    def _end(self, stream: int, code: int) -> Ended:
        tag = self._tags.pop(stream)
        del self._streams[tag]
        kept = self._kept.pop(stream, b"")
        return Ended(tag, code, kept[GRPC_PREFIX.size :] if code == OK else b"")

    def give_up(self, tag: int) -> None:
        """Cancels a call; what still comes for it is ignored."""
        stream = self._streams[tag]
        self._end(stream, CANCELLED)
        self.out += _frame(RST_STREAM, 0, stream, struct.pack(">I", CANCEL))


def _framed(body: bytes) -> bytes:
    """Returns a message with gRPC's prefix: not compressed, and its length."""
    return GRPC_PREFIX.pack(0, len(body)) + body


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return FRAME.pack(len(payload) << 8 | kind, flags, stream) + payload


def _unpadded(payload: bytes, flags: int) -> bytes:
    if not flags & (PADDED | PRIORITY):
        return payload
    begin, end = 0, len(payload)
    if flags & PADDED:
        begin, end = 1, end - payload[0]
    return payload[begin + 5 * bool(flags & PRIORITY) : end]
