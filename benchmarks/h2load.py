"""h2load, written in C and by others: the second, independent client."""

import re
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np

from recserve.benchmarks.statistics import percentiles
from recserve.errors import CheckFailed, ConfigError

PATH = "/recserve.v1.Recommender/Recommend"
FRAME_BYTES = 5
SIZE_TOLERANCE = 0.05
TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Shape:
    """A load: ``connections`` × ``streams`` requests in flight at most."""

    connections: int
    streams: int

    def __str__(self) -> str:
        return f"{self.connections}×{self.streams}"


@dataclass(frozen=True, slots=True)
class Answered:
    """Answers per second; median and 99th percentile of the latency in microseconds."""

    per_second: float
    p50_us: float
    p99_us: float


def require() -> None:
    """Raises :class:`ConfigError` where h2load is not installed."""
    if shutil.which("h2load") is None:
        raise ConfigError(
            "h2load",
            found="not installed",
            expected="on the path",
            cure="Install the package nghttp2-client.",
        )


def write_body(message: bytes, folder: Path) -> Path:
    """Writes ``message`` as one uncompressed gRPC frame; returns the file."""
    body = folder / "request.bin"
    body.write_bytes(b"\0" + struct.pack(">I", len(message)) + message)
    return body


def reply_bytes(address: str, body: Path) -> int:
    """Returns how long one reply is on the wire, its frame included."""
    with grpc.insecure_channel(address) as channel:
        reply = channel.unary_unary(PATH)(body.read_bytes()[FRAME_BYTES:], timeout=TIMEOUT_SECONDS)
    return FRAME_BYTES + len(reply)


def h2load(address: str, shape: Shape, body: Path, seconds: int, size: int, rate: float = 0.0) -> Answered:
    """Asks for ``seconds``, as fast as answers come or at a constant ``rate`` of requests per second.

    ``size``: bytes of a reply. A failed call has none but counts as a success of HTTP, so the sum is checked:
    raises :class:`CheckFailed`.
    """
    log = body.with_suffix(".log")
    command = [
        "h2load", "-D", f"{seconds}", "-t", "1", "-c", str(shape.connections),
        "-m", str(shape.streams), "-d", str(body), "-H", "content-type: application/grpc",
        "-H", "te: trailers", f"--log-file={log}", f"http://{address}{PATH}",
    ]  # fmt: skip
    if rate:
        command.insert(-1, f"--rps={rate / shape.connections:.3f}")
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    counts = re.search(r"status codes: (\d+) 2xx.*\ntraffic: .* \((\d+)\) data", output)
    if counts is None:
        raise CheckFailed("output of h2load", found=output[-200:], expected="counts of replies and bytes")
    succeeded, data = map(int, counts.groups())
    # Stage times make replies a few bytes longer or shorter.
    if data < (1 - SIZE_TOLERANCE) * size * succeeded:
        raise CheckFailed(f"bytes of {succeeded} replies", found=data, expected=f"about {size} each")
    # Column 3 of the log is the latency in microseconds.
    latencies = np.array([float(line.split("\t")[2]) for line in log.read_text().splitlines()])
    log.unlink()
    if not len(latencies):
        raise CheckFailed(f"replies of {address}", found=0, expected="some")
    return Answered(succeeded / seconds, *percentiles(latencies, [50.0, 99.0]))
