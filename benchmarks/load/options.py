"""What a run is asked for, read from the command line's strings and checked once."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from recserve.engine.traces import KINDS
from recserve.errors import InvalidRequest

EMBED = "embed"
SCHEMES = ("grpc", "oip", "http")
ARRIVALS = ("poisson", "constant", "gamma")
# Those of a recorded trace.
RECORDED = "recorded"
DEFAULT_PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
UNITS_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


@dataclass(frozen=True, slots=True)
class Target:
    """Who is asked: ``scheme`` embed (``path`` is a bundle), grpc, oip (``path`` is a model) or http."""

    scheme: str
    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.scheme == EMBED:
            return f"{EMBED}:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}" + (f"/{self.path}" if self.path else "")


@dataclass(frozen=True, slots=True)
class Arrivals:
    """How the gaps between arrivals vary. ``cv``: their standard deviation by their mean (poisson: 1)."""

    kind: str = "poisson"
    cv: float = 1.0

    def __str__(self) -> str:
        return f"gamma:{self.cv:g}" if self.kind == "gamma" else self.kind


@dataclass(frozen=True, slots=True)
class Slo:
    """A promise: the ``percentile``-th latency is at most ``limit_ms``."""

    percentile: float
    limit_ms: float

    def __str__(self) -> str:
        return f"p{self.percentile:g}:{self.limit_ms:g}ms"


@dataclass(frozen=True, slots=True)
class Asked:
    """What the requests are. ``zipf``: exponent of the users' popularity, 0 for all alike.

    ``mix``: pairs of kind and share, which sum to 1. ``headers``: metadata of every call.
    """

    k: int = 10
    mix: tuple[tuple[str, float], ...] = (("recommend", 1.0),)
    zipf: float = 1.1
    variant: str = ""
    model: str = ""
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Pace:
    """When requests are sent: ``rate`` (requests/s, open loop) or ``concurrency`` (in flight, closed loop).

    ``duration`` in seconds and ``requests`` end the measured part, whichever comes first (0: not by that);
    ``warm_up`` seconds come before it. ``think``: mean seconds between an answer and the next request of a
    closed loop, exponentially distributed. ``timeout``: seconds until a request is given up.
    """

    rate: float = 0.0
    concurrency: int = 0
    arrivals: Arrivals = Arrivals()
    warm_up: float = 2.0
    duration: float = 10.0
    requests: int = 0
    think: float = 0.0
    timeout: float = 1.0
    seed: int = 7

    def __post_init__(self) -> None:
        if (self.rate > 0) == (self.concurrency > 0):
            raise InvalidRequest(
                "load",
                found=f"rate {self.rate:g} and concurrency {self.concurrency}",
                expected="--rate (open loop) or --concurrency (closed loop)",
            )
        if self.duration <= 0 and self.requests <= 0:
            raise InvalidRequest("--duration", found=self.duration, expected="above 0, or --requests")
        if self.think and not self.concurrency:
            raise InvalidRequest("--think", found="with --rate", expected="with --concurrency")
        for name in ("rate", "warm_up", "duration", "think"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InvalidRequest(f"--{name}", found=getattr(self, name), expected="0 or more")
        if not 0 < self.timeout < math.inf:
            raise InvalidRequest("--timeout", found=self.timeout, expected="above 0 seconds")


@dataclass(frozen=True, slots=True)
class Client:
    """How the generator is built: ``processes``, each with its share of ``connections``."""

    processes: int = 1
    connections: int = 8

    def __post_init__(self) -> None:
        if not 1 <= self.processes <= self.connections:
            raise InvalidRequest(
                "--processes",
                found=f"{self.processes} with {self.connections} connections",
                expected="1 to the number of connections",
            )


def read_target(text: str) -> Target:
    """Reads ``embed:BUNDLE``, ``grpc://HOST:PORT``, ``oip://HOST:PORT/MODEL`` or ``http://HOST:PORT``."""
    if text.startswith(f"{EMBED}:"):
        path = text.removeprefix(f"{EMBED}:").removeprefix("//")
        if path:
            return Target(EMBED, path=str(Path(path)))
    parts = urlsplit(text)
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme not in SCHEMES or not parts.hostname or not port or parts.query:
        raise InvalidRequest(
            "target",
            found=text,
            expected="embed:BUNDLE, grpc://HOST:PORT, oip://HOST:PORT/MODEL or http://HOST:PORT",
        )
    path = parts.path.strip("/")
    if bool(path) != (parts.scheme == "oip"):
        raise InvalidRequest(
            "target",
            found=text,
            expected="oip:// with the name of a model as its path, others without a path",
        )
    return Target(parts.scheme, parts.hostname, port, path)


def read_arrivals(text: str) -> Arrivals:
    """Reads ``poisson``, ``constant`` or ``gamma:CV``."""
    kind, _, cv = text.partition(":")
    if kind not in ARRIVALS or (kind == "gamma") != bool(cv):
        raise InvalidRequest("--arrivals", found=text, expected="poisson, constant or gamma:CV")
    return Arrivals(kind, _positive("--arrivals", cv) if cv else float(kind == "poisson"))


def read_slos(texts: Sequence[str]) -> tuple[Slo, ...]:
    """Reads promises such as ``p99:20ms``."""
    slos = []
    for text in texts:
        found = re.fullmatch(r"p(\d+(?:\.\d+)?):(\d+(?:\.\d+)?)(us|ms|s)", text)
        if found is None or not 0 < float(found[1]) < 100 or not float(found[2]):
            raise InvalidRequest("--slo", found=text, expected="a percentile and a limit, such as p99:20ms")
        slos.append(Slo(float(found[1]), float(found[2]) * UNITS_MS[found[3]]))
    return tuple(slos)


def read_mix(text: str) -> tuple[tuple[str, float], ...]:
    """Reads ``recommend:90,similar:10`` into shares that sum to 1."""
    weights: dict[str, float] = {}
    for part in text.split(","):
        kind, _, weight = part.partition(":")
        if kind not in KINDS or kind in weights:
            raise InvalidRequest("--mix", found=part, expected=f"KIND:WEIGHT, each kind of {KINDS} once")
        weights[kind] = _positive("--mix", weight or "1")
    total = sum(weights.values())
    return tuple((kind, weight / total) for kind, weight in weights.items())


def read_percentiles(text: str) -> tuple[float, ...]:
    """Reads ``50,90,99.9``."""
    try:
        values = tuple(sorted({float(part) for part in text.split(",")}))
    except ValueError:
        values = ()
    if not values or not all(0 < value < 100 for value in values):
        raise InvalidRequest("--percentiles", found=text, expected="numbers between 0 and 100, such as 50,99")
    return values


def read_sweep(text: str) -> tuple[float, ...]:
    """Reads ``100:2000:200``: the rates from the first to at most the second, by the third."""
    parts = text.split(":")
    if len(parts) != 3:
        raise InvalidRequest("--rate-sweep", found=text, expected="FIRST:LAST:STEP, such as 100:2000:200")
    first, last, step = (_positive("--rate-sweep", part) for part in parts)
    if last < first:
        raise InvalidRequest("--rate-sweep", found=text, expected="a last rate that is not below the first")
    return tuple(first + i * step for i in range(int((last - first) / step + 1e-9) + 1))


def read_headers(texts: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Reads ``name: value`` lines."""
    headers = []
    for text in texts:
        name, colon, value = text.partition(":")
        if not colon or not re.fullmatch(r"[a-z0-9_.-]+", name.strip().lower()) or not text.isprintable():
            raise InvalidRequest("--header", found=text, expected="'name: value', printable")
        headers.append((name.strip().lower(), value.strip()))
    return tuple(headers)


def _positive(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise InvalidRequest(name, found=text, expected="numbers above 0")
    return value
