"""The service seam: what a service is, independent of the network that carries it.

A service is a list of :class:`Method`. Every transport (grpcio, native, in-process, and any to come) hands
the bytes of a call to :class:`recserve.engine.server.chain.Chain`, and the chain does the same for each:

    authorise → admit → decode → handler → … → reply or fail → encode → observers → transport

so that no transport can leave a step out. Nothing in a handler knows which transport it answers.

Adding a method
    1. Write the handler: ``handler(request, call)`` with the decoded message and a
       :class:`~recserve.engine.server.call.Call`. It runs on the thread that received the bytes, must not
       block, and sees to it that *exactly one* of ``call.reply(message)`` and ``call.fail(error)`` is
       called, now or later and from any thread (a second answer is ignored; a raised error is ``fail``).
       - An ordinary function that takes time and returns its reply: ``pool.plain(function)`` is a handler
         that runs ``function(request, call)`` on the worker pool, unless the call is late or gone by then.
       - One of the calls that are answered together: ``batcher.submit`` (engine/batcher.py) is a handler.
       - Something that never waits (health): the handler itself.
    2. Make a row: ``Method(path="/package.Service/Name", request=pb.Ask, response=pb.Answer,
       handler=…, scope="items:read")``. ``decode`` and ``encode`` are those of the messages unless given:
       an ``encode`` that writes bytes straight from arrays, a ``decode`` of a private descriptor pool.
       ``http="/v1/name"`` makes a unary method a route of the JSON gateway too (server/http).
    3. Add the row to the list that ``app.Server`` builds its :class:`MethodTable` from (``extra_methods``
       for what is not always there). All transports, the authorisation matrix, the fuzzers and the metrics
       enumerate that table: there is no second place.

Errors
    Raise or ``fail`` with an error of recserve/errors.py; engine/wire/status.py is the one table of gRPC
    codes and reasons. Anything else becomes INTERNAL with an id that only the log explains.

What a call carries
    ``metadata`` (pairs as received, keys in lower case; ``call.header(name)``), ``deadline`` (absolute, of
    ``time.monotonic``; the server's default when the caller set none, infinite for streams), ``peer``,
    ``principal`` (set by the authorising hook), ``request_id``, ``priority`` (0 is the most urgent),
    ``is_done`` (answered, cancelled or expired: stop working), ``on_done(callback)`` (runs on whatever
    thread ends the call, inside its ``reply`` or ``send``: hold no lock there that it takes), and
    ``stage_ns`` (nanoseconds by stage, for the observers).

Scopes
    ``scope`` is what a principal needs, one of scopes.py; those in ``ADMIN_SCOPES`` are served on the admin
    address only, and audited. The chain asks ``principal_of(call)`` (security/authoriser.py) before anything
    else. ``also_scope(request)`` names the scope that some messages of the method need besides, "" for none.
    ``weight(request)``: as how many calls a message counts against its caller's limit, 1 unless given.

Streams (``shape``)
    - SERVER_STREAM: the handler keeps the call and uses ``call.send(message)`` (any thread; False: the caller
      has left), then ``call.finish()`` or ``call.fail(error)``.
    - CLIENT_STREAM and BIDIRECTIONAL: ``handler(call)`` returns a :class:`Consumer`. The transport gives
      it each decoded message; the answer is ``call.reply`` (client stream) or ``call.send`` and
      ``call.finish`` (bidirectional).
    A transport names the shapes that it carries and refuses a table with another one when it starts.
"""

import enum
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from recserve.errors import ConfigError

# Smaller is more urgent.
INTERACTIVE = 1
BACKGROUND = 3


class Shape(enum.Enum):
    """How many messages go each way."""

    UNARY = "unary"
    SERVER_STREAM = "server stream"
    CLIENT_STREAM = "client stream"
    BIDIRECTIONAL = "bidirectional"

    @property
    def streams_requests(self) -> bool:
        """Whether the caller sends several messages."""
        return self in (Shape.CLIENT_STREAM, Shape.BIDIRECTIONAL)

    @property
    def streams_replies(self) -> bool:
        """Whether the server sends several messages."""
        return self in (Shape.SERVER_STREAM, Shape.BIDIRECTIONAL)


class Consumer(Protocol):
    """Takes the messages of one streaming caller, in order, on the transport's thread: it must not block."""

    def message(self, request: Any) -> "Future[None] | None":
        """Takes one message. The transport reads the next one when the future, if any, is done."""

    def end(self) -> None:
        """The caller has sent everything. (A caller who leaves early is seen by ``call.on_done`` instead.)"""


def _that_of_the_message(_: Any) -> Any:
    raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One row of a service; see the module's text.

    ``path``: "/package.Service/Name"; ``request`` and ``response``: message classes; ``is_admitted``:
    whether the call counts against ``max_in_flight`` and holds a drain (health and streams do not);
    ``is_batched``: whether calls are answered together (for metrics and model statistics); ``http``: path
    of a unary method on the JSON gateway, "" for none; ``is_audited``: written to the audit log although it
    is on the public address.
    """

    path: str
    request: Any
    response: Any
    handler: Callable[..., Any]
    scope: str
    shape: Shape = Shape.UNARY
    priority: int = INTERACTIVE
    is_admitted: bool = True
    is_batched: bool = False
    http: str = ""
    is_audited: bool = False
    also_scope: Callable[[Any], str] | None = None
    weight: Callable[[Any], int] | None = None
    decode: Callable[[bytes], Any] = _that_of_the_message
    encode: Callable[[Any], bytes] = _that_of_the_message

    def __post_init__(self) -> None:
        service, _, name = self.path.removeprefix("/").partition("/")
        if not self.path.startswith("/") or not service or not name:
            raise ConfigError("method path", found=self.path, expected="/package.Service/Name")
        if not self.scope:
            raise ConfigError(f"scope of {self.path}", found="empty", expected="a name")
        if self.http and (not self.http.startswith("/") or self.shape is not Shape.UNARY):
            raise ConfigError(f"http of {self.path}", found=self.http, expected="/PATH of a unary method")
        if self.decode is _that_of_the_message:
            object.__setattr__(self, "decode", self.request.FromString)
        if self.encode is _that_of_the_message:
            object.__setattr__(self, "encode", self.response.SerializeToString)

    @property
    def service(self) -> str:
        """The full name of the service, "package.Service"."""
        return self.path[1:].partition("/")[0]


class MethodTable:
    """Every method that a server has, by path."""

    def __init__(self, methods: Iterable[Method]) -> None:
        self._methods: dict[str, Method] = {}
        for method in methods:
            if method.path in self._methods:
                raise ConfigError(f"method {method.path}", found="given twice", expected="one row")
            self._methods[method.path] = method

    def __iter__(self) -> Iterator[Method]:
        return iter(self._methods.values())

    def __len__(self) -> int:
        return len(self._methods)

    def get(self, path: str) -> Method | None:
        """Returns the method of ``path``, or None."""
        return self._methods.get(path)

    def services(self) -> list[str]:
        """Returns the full names of the services, in the order of the table."""
        return list(dict.fromkeys(method.service for method in self))

    def check_shapes(self, transport: str, carried: frozenset[Shape]) -> None:
        """Raises :class:`ConfigError` when the table has a shape that ``transport`` does not carry."""
        for method in self:
            if method.shape not in carried:
                raise ConfigError(
                    f"method {method.path} over transport {transport}",
                    found=method.shape.value,
                    expected=", ".join(sorted(shape.value for shape in carried)),
                    cure="Switch the method off or serve it with --transport grpcio.",
                )
