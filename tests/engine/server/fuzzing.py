"""Messages of which any part may be wrong, and bytes that were changed, through every way into the server.

Run as a program for many: ``python -m tests.engine.server.fuzzing BUNDLE --inputs 1000000``. An input passes
when it is answered, once, by a reply or by a status that does not blame the server.
"""

import argparse
import random
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.rpc import status_pb2

from recserve.engine import Engine, EngineConfig
from recserve.engine.server.app import Server
from recserve.engine.server.config import ServerConfig
from recserve.engine.server.http.json_codec import message_from_json
from recserve.engine.server.methods import Method, Shape
from recserve.engine.server.remembering import Remembering
from recserve.engine.state.config import StateConfig
from recserve.errors import CheckFailed
from recserve.proto import recommender_pb2 as pb
from tests.engine.server.local import TIMEOUT_SECONDS, LocalCall
from tests.engine.server.open_inference.messages import ask

OURS = {code.value[0] for code in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL)}
# Calls under way at once: they fill a batch.
WINDOW = 64
MAX_DEPTH = 4
N_SEEDS = 300
EDGES = (0, 1, -1, 10, 1000, 1001, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63))
FLOATS = (0.0, 1.0, -1.0, 0.5, 1e308, 5e-324, float("nan"), float("inf"), float("-inf"))
TEXTS = ("", "a", "x" * 257, "\0", "\n{}", "../../etc", "'; DROP", "é", "e\u0301", "\u202e", "😀", "1e9")
WORDS = ("fast", "exact", "mmr", "dpp", "calibrated", "model", "popularity", "category", "price", "click")
# Ends of varints, lengths and tags, and what parsers of text stumble over.
PIECES = (
    b"\x00",
    b"\xff" * 9 + b"\x01",
    b"\x0a\xff\xff\xff\xff\x07",
    b"\x80",
    b"\xc0\x80",
    b"[" * 60,
    b"{",
    b'"',
)
FILTERS = (
    'price < 50 and category in ("a", "b")',
    "not (category = 'a' or price between 1 and 2.5e3)",
    'title is not null and (price >= -1 or price != 1) and `a b` = "x\\"y"',
)


class Messages:
    """Random messages of any kind, from their descriptors; ``ids`` are known to the server.

    Some have few fields and harmless values, so that they come far; of some, everything is wild.
    """

    def __init__(self, rng: random.Random, ids: list[str]) -> None:
        self._rng = rng
        self._ids = ids
        self._texts = (*ids, *TEXTS, *WORDS, *FILTERS)
        self._density = self._wildness = 0.0

    def new(self, kind: Any) -> Any:
        """Returns a message of class ``kind``."""
        self._density = self._rng.choice((0.1, 0.2, 0.5))
        self._wildness = self._rng.choice((0.0, 0.1, 1.0))
        message = kind()
        self._fill(message, kind.DESCRIPTOR, 0)
        return message

    def _fill(self, message: Any, descriptor: Descriptor, depth: int) -> None:
        for one in descriptor.fields:
            if self._rng.random() > self._density or (one.message_type is not None and depth == MAX_DEPTH):
                continue
            if one.message_type is not None and one.message_type.GetOptions().map_entry:
                self._fill_map(getattr(message, one.name), one.message_type, depth)
            elif one.is_repeated:
                for _ in range(self._rng.choice((1, 1, 2, 5))):
                    if one.message_type is not None:
                        self._fill(getattr(message, one.name).add(), one.message_type, depth + 1)
                    else:
                        getattr(message, one.name).append(self._value(one))
            elif one.message_type is not None:
                getattr(message, one.name).SetInParent()
                self._fill(getattr(message, one.name), one.message_type, depth + 1)
            else:
                setattr(message, one.name, self._value(one))

    def _fill_map(self, entries: Any, entry: Descriptor, depth: int) -> None:
        key, value = self._value(entry.fields_by_name["key"]), entry.fields_by_name["value"]
        if value.message_type is not None:
            self._fill(entries[key], value.message_type, depth + 1)
        else:
            entries[key] = self._value(value)

    def _value(self, one: FieldDescriptor) -> Any:
        kind, rng = one.cpp_type, self._rng
        is_wild = rng.random() < self._wildness
        if kind == FieldDescriptor.CPPTYPE_STRING:
            text = rng.choice(self._texts if is_wild else self._ids)
            return text if one.type == FieldDescriptor.TYPE_STRING else text.encode()
        if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
            return rng.choice(FLOATS) if is_wild else rng.random()
        if kind == FieldDescriptor.CPPTYPE_BOOL:
            return rng.random() < 0.5
        if kind == FieldDescriptor.CPPTYPE_ENUM:
            return rng.choice((*(value.number for value in one.enum_type.values), 99))
        unsigned = kind in (FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64)
        bits = 32 if kind in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_UINT32) else 64
        low, high = (0, 2**bits - 1) if unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        return min(max(rng.choice(EDGES), low), high) if is_wild else rng.randrange(1, 20)


def mutate(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Returns ``data`` with some of its bytes changed, cut, doubled or taken from ``other``."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        at, n, kind = rng.randrange(len(changed) + 1), rng.choice((1, 1, 2, 4, 16)), rng.randrange(7)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[at : at + n] = rng.randbytes(n)
        elif kind == 2:
            changed[at:at] = rng.randbytes(n)
        elif kind == 3:
            del changed[at : at + n]
        elif kind == 4:
            changed[at:at] = changed[max(0, at - n) : at] * rng.choice((1, 1, 8))
        elif kind == 5:
            start = rng.randrange(len(other) + 1)
            changed[at : at + n] = other[start : start + n]
        else:
            changed[at:at] = rng.choice(PIECES)
    return bytes(changed)


@dataclass
class Outcome:
    """What became of ``n`` inputs: by code, and the slowest answer in seconds."""

    n: int = 0
    codes: dict[str, int] = field(default_factory=dict)
    slowest: float = 0.0


Way = tuple[Method, Callable[[random.Random], bytes]]


def ways(server: Server, ids: list[str]) -> dict[str, Callable[[random.Random], Way]]:
    """Returns every way in by name: each unary method, JSON, the filter language and page tokens."""

    def bytes_of(method: Method) -> Callable[[random.Random], Way]:
        def way(rng: random.Random) -> Way:
            seeds = _seeds(method, rng, ids)
            return method, lambda rng: mutate(rng, rng.choice(seeds), rng.choice(seeds))

        return way

    def json_of(method: Method) -> Callable[[random.Random], Way]:
        def way(rng: random.Random) -> Way:
            read = replace(method, decode=lambda data: message_from_json(method.request, data))
            messages = map(method.request.FromString, _seeds(method, rng, ids))
            seeds = [json_format.MessageToJson(message, indent=None).encode() for message in messages]
            return read, lambda rng: mutate(rng, rng.choice(seeds), rng.choice(seeds))

        return way

    def text_of(name: str, seeds: list[str]) -> Callable[[random.Random], Way]:
        def way(rng: random.Random) -> Way:
            raw = [seed.encode() for seed in seeds]

            def make(rng: random.Random) -> bytes:
                text = mutate(rng, rng.choice(raw), rng.choice(raw)).decode(errors="replace")
                return pb.RecommendRequest(user_id=rng.choice(ids), k=5, **{name: text}).SerializeToString()

            return recommend, make

        return way

    unary = [method for method in server.chain.methods if method.shape is Shape.UNARY]
    by_name = {method.path.removeprefix("/"): method for method in unary}
    recommend = by_name["recserve.v1.Recommender/Recommend"]
    tokens = [page_token(server, recommend, user) for user in ids[:20]]
    return {
        **{name: bytes_of(method) for name, method in by_name.items()},
        "JSON Recommend": json_of(recommend),
        "JSON Record": json_of(by_name["recserve.v1.Feedback/Record"]),
        "filter": text_of("filter", list(FILTERS)),
        "page token": text_of("page_token", tokens),
    }


def _seeds(method: Method, rng: random.Random, ids: list[str]) -> list[bytes]:
    messages = Messages(rng, ids)
    seeds = [messages.new(method.request).SerializeToString() for _ in range(N_SEEDS)]
    # Chance alone never makes a tensor whose shape is that of its contents.
    if method.path.endswith("/ModelInfer"):
        seeds += [
            ask([user, "new"], raw=raw, k=5, exclude=ids[-1]).SerializeToString()
            for raw in (True, False)
            for user in ids
        ]
    return seeds


def page_token(server: Server, recommend: Method, user: str) -> str:
    """Returns the token of a user's second page."""
    call = LocalCall(recommend, seconds=TIMEOUT_SECONDS)
    server.chain.dispatch(call, pb.RecommendRequest(user_id=user, k=5, page_token="").SerializeToString())
    return str(pb.Slate.FromString(call.result()).next_page_token)


def fuzz(server: Server, way: Callable[[random.Random], Way], n: int, seed: int) -> Outcome:
    """Sends ``n`` inputs; raises :class:`CheckFailed` with the first that is not answered as it should be."""
    rng, outcome = random.Random(seed), Outcome()
    method, make = way(rng)
    under_way: deque[tuple[LocalCall, bytes]] = deque()
    for _ in range(n):
        data = make(rng)
        call = LocalCall(method, seconds=TIMEOUT_SECONDS)
        server.chain.dispatch(call, data)
        under_way.append((call, data))
        if len(under_way) == WINDOW:
            _settle(*under_way.popleft(), outcome)
    while under_way:
        _settle(*under_way.popleft(), outcome)
    return outcome


def _settle(call: LocalCall, data: bytes, outcome: Outcome) -> None:
    answer = call.future.result(TIMEOUT_SECONDS)
    code = grpc.StatusCode.OK.value[0]
    if isinstance(answer, status_pb2.Status):
        code = answer.code
    else:
        call.method.response.FromString(answer)
    if code in OURS or call.n_answers != 1:
        found = f"{code} to {data!r}: {call.error!r}"
        raise CheckFailed(call.method.path, found=found, expected="one answer that does not blame the server")
    outcome.n += 1
    name = next(one.name for one in grpc.StatusCode if one.value[0] == code)
    outcome.codes[name] = outcome.codes.get(name, 0) + 1
    outcome.slowest = max(outcome.slowest, time.monotonic() - call.received_at)


@contextmanager
def fuzzed_server(bundle: Path) -> Iterator[tuple[Server, list[str]]]:
    """Yields a server without a network, with a log and long deadlines, and ids that it knows."""
    config = ServerConfig(port=0, default_deadline_ms=60_000)
    with Remembering(StateConfig(url="memory://"), EngineConfig(), config) as remembering:
        server = Server(config, router=remembering.router, extra_methods=remembering.methods())
        remembering.load()
        with Engine.load(bundle, observed=remembering.observed) as engine:
            server.serve(engine)
            items = engine.loaded.bundle.catalogue.vocabulary.ids([0, 1, 2, 3, 4])
            try:
                yield server, [*engine.user_ids()[:20], *items]
            finally:
                server.stop()


def main() -> None:
    """Fuzzes one way in, or all, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--way", help="part of a name; all ways unless given")
    options = parser.parse_args()
    with fuzzed_server(options.bundle) as (server, ids):
        for name, way in ways(server, ids).items():
            if options.way is None or options.way in name:
                start = time.monotonic()
                outcome = fuzz(server, way, options.inputs, options.seed)
                codes = ", ".join(f"{code} {n}" for code, n in sorted(outcome.codes.items()))
                line = f"{name}: {outcome.n} inputs in {time.monotonic() - start:.0f} s, slowest"
                sys.stdout.write(f"{line} {outcome.slowest * 1000:.0f} ms; {codes}\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
