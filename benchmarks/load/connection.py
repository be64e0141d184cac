"""What the sending loop needs of a protocol, and the socket under it."""

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

# The codes of gRPC that a client gives itself: https://grpc.io/docs/guides/status-codes/
OK, CANCELLED, UNKNOWN, DEADLINE_EXCEEDED = 0, 1, 2, 4
RESOURCE_EXHAUSTED, INTERNAL, UNAVAILABLE = 8, 13, 14
RECEIVE_BYTES = 1 << 18
CONNECT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Ended:
    """A request that is over: its ``tag``, gRPC ``code``, and the reply where it was wanted."""

    tag: int
    code: int
    reply: bytes = b""


class Connection(Protocol):
    """One connection. Methods that read or write never block; a dead one fails what was in flight."""

    @property
    def sock(self) -> socket.socket:
        """The socket, for the poller."""

    @property
    def is_open(self) -> bool:
        """Whether it can ever take a request again."""

    def can_send(self, message: int) -> bool:
        """Whether there is a place for message number ``message`` now."""

    def send(self, tag: int, message: int, keep: bool) -> None:
        """Queues a request; ``keep``: hand the bytes of its reply back."""

    def flush(self) -> bool:
        """Writes what is queued; returns whether everything went out."""

    def receive(self) -> Sequence[Ended]:
        """Reads what has come and returns the requests that ended by it."""

    def give_up(self, tag: int) -> None:
        """Forgets a request whose time is over."""

    def close(self) -> None:
        """Ends the connection."""


class Wire:
    """A non-blocking socket with a queue of bytes to send."""

    def __init__(self, host: str, port: int) -> None:
        """Connects; raises OSError where nobody listens."""
        self.sock = socket.create_connection((host, port), CONNECT_SECONDS)
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.out = bytearray()
        self.is_open = True

    def flush(self) -> bool:
        """Writes what the kernel takes; returns whether that was all."""
        if self.out and self.is_open:
            try:
                del self.out[: self.sock.send(self.out)]
            except BlockingIOError:
                return False
            except OSError:
                self.is_open = False
        return not self.out or not self.is_open

    def read(self) -> bytes:
        """Returns what has come; b"" may also mean that the other side has closed (see ``is_open``)."""
        try:
            data = self.sock.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return b""
        except OSError:
            data = b""
        if not data:
            self.is_open = False
        return data

    def close(self) -> None:
        """Closes the socket."""
        self.is_open = False
        self.sock.close()
