"""One HTTP/2 connection, frame by frame, for clients that no library would be."""

import socket
import struct

import hpack

from recserve.benchmarks.load.http2 import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    FRAME,
    GOAWAY,
    GRPC_PREFIX,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
)

CANCEL = 8
TIMEOUT_SECONDS = 60.0
RECOMMEND = "/recserve.v1.Recommender/Recommend"


class RawConnection:
    """Sends what it is told; ``answers`` says what came back."""

    def __init__(self, address: str, *, window: int = 65_535) -> None:
        """``window``: bytes that the server may send of each reply before it has to wait."""
        host, _, port = address.rpartition(":")
        self._address = address
        self.sock = socket.create_connection((host, int(port)), TIMEOUT_SECONDS)
        self._encoder = hpack.Encoder()
        self._next = 1
        self.send(PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, window)))

    def __enter__(self) -> "RawConnection":
        return self

    def __exit__(self, *raised: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        """Sends bytes; raises OSError when the server has closed."""
        self.sock.sendall(data)

    def headers(self, *more: tuple[str, str], path: str = RECOMMEND, whole: bool = True) -> bytes:
        """Returns the frame that opens the next stream; not ``whole``: more headers are announced."""
        named = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", self._address)]
        named += [("te", "trailers"), ("content-type", "application/grpc"), *more]
        block = self._encoder.encode(named)
        stream, self._next = self._next, self._next + 2
        return frame(HEADERS, END_HEADERS if whole else 0, stream, block)

    def call(self, message: bytes, *more: tuple[str, str]) -> None:
        """Sends a whole request."""
        opened = self.headers(*more)
        body = GRPC_PREFIX.pack(0, len(message)) + message
        self.send(opened + frame(DATA, END_STREAM, self._next - 2, body))

    def is_closed_after(self, data: bytes, times: int) -> bool:
        """Sends ``data`` again and again; returns whether the server closed the connection meanwhile."""
        try:
            for _ in range(times):
                self.sock.sendall(data)
            self.sock.shutdown(socket.SHUT_WR)
            return GOAWAY in self.kinds()
        except OSError:
            return True

    def kinds(self) -> set[int]:
        """Reads to the end; returns the kinds of the frames that came."""
        data = b""
        while part := self.sock.recv(1 << 16):
            data += part
        kinds, at = set(), 0
        while at + FRAME.size <= len(data):
            length_kind, _, _ = FRAME.unpack_from(data, at)
            kinds.add(length_kind & 0xFF)
            at += FRAME.size + (length_kind >> 8)
        return kinds


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Returns one frame."""
    return FRAME.pack(len(payload) << 8 | kind, flags, stream) + payload


def reset(stream: int) -> bytes:
    """Returns the frame that takes a stream back."""
    return frame(RST_STREAM, 0, stream, struct.pack(">I", CANCEL))


def ping() -> bytes:
    """Returns a frame that wants an answer."""
    return frame(PING, 0, 0, b"12345678")


def continuation(stream: int, block: bytes) -> bytes:
    """Returns headers that go on, and announce more."""
    return frame(CONTINUATION, 0, stream, block)
