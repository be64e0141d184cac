"""JSON calls over one HTTP/1.1 connection: one at a time, kept alive."""

from collections.abc import Sequence
from dataclasses import dataclass

from recserve.benchmarks.load.connection import (
    DEADLINE_EXCEEDED,
    INTERNAL,
    OK,
    RESOURCE_EXHAUSTED,
    UNAVAILABLE,
    Ended,
    Wire,
)
from recserve.errors import CheckFailed

# As google.rpc.Code documents the HTTP mapping of each code.
CODE_OF_HTTP = {
    200: OK,
    400: 3,
    401: 16,
    403: 7,
    404: 5,
    409: 10,
    429: RESOURCE_EXHAUSTED,
    499: 1,
    501: 12,
    503: UNAVAILABLE,
    504: DEADLINE_EXCEEDED,
}


@dataclass(frozen=True, slots=True)
class JsonMessage:
    """One request that can be sent any number of times."""

    path: str
    body: bytes


class JsonConnection(Wire):
    """Sends ``messages`` by number; every call has the deadline of ``timeout`` seconds in its headers."""

    def __init__(
        self,
        host: str,
        port: int,
        messages: Sequence[JsonMessage],
        timeout: float,
        headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__(host, port)
        lines = [
            f"host: {host}:{port}",
            "content-type: application/json",
            f"grpc-timeout: {max(1, round(timeout * 1e3))}m",
            *(f"{name}: {value}" for name, value in headers),
        ]
        common = "\r\n".join(lines)
        self._messages = [_request(message, common) for message in messages]
        self._tag: int | None = None
        self._keep = False
        self._in = b""

    def can_send(self, message: int) -> bool:
        """Whether nothing is in flight."""
        return self._tag is None and self.is_open

    def send(self, tag: int, message: int, keep: bool) -> None:
        """Queues a call."""
        self._tag, self._keep = tag, keep
        self.out += self._messages[message]

    def receive(self) -> Sequence[Ended]:
        """Reads what has come; a connection that ends fails its call as UNAVAILABLE."""
        self._in += self.read()
        head, found, body = self._in.partition(b"\r\n\r\n")
        if found and self._tag is not None:
            status, fields = _read_head(head)
            size = int(fields["content-length"])
            if len(body) >= size:
                ended = Ended(
                    self._tag, CODE_OF_HTTP.get(status, INTERNAL), body[:size] if self._keep else b""
                )
                self._tag, self._in = None, body[size:]
                # The server says so when it will not read on.
                self.is_open = self.is_open and fields.get("connection") != "close"
                return [ended]
        if not self.is_open and self._tag is not None:
            tag, self._tag = self._tag, None
            return [Ended(tag, UNAVAILABLE)]
        return []

    def give_up(self, tag: int) -> None:
        """Closes the connection: its answer would be taken for that of the next call."""
        self._tag = None
        self.close()


def _request(message: JsonMessage, common: str) -> bytes:
    head = f"POST {message.path} HTTP/1.1\r\n{common}\r\ncontent-length: {len(message.body)}\r\n\r\n"
    return head.encode() + message.body


def _read_head(head: bytes) -> tuple[int, dict[str, str]]:
    """Returns the status and the header fields."""
    first, *lines = head.decode("latin-1").split("\r\n")
    words = first.split(" ")
    fields = {}
    for line in lines:
        name, _, value = line.partition(":")
        fields[name.strip().lower()] = value.strip().lower()
    if len(words) < 2 or not words[1].isdigit() or not fields.get("content-length", "").isdigit():
        raise CheckFailed("answer of the server", found=first, expected="HTTP/1.1 with a content-length")
    return int(words[1]), fields
