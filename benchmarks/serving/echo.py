"""Echo servers to compare with: ``python -m recserve.benchmarks.serving.echo KIND grpcio|native``.

``echo`` is the transport's library alone, used as directly as it allows; ``chain`` is a method of one line
behind the whole chain of the server. Both answer as many bytes as a slate of ten items has. ``discard``
(grpcio) says of events that they are recorded, and forgets them. All print their address and serve until
SIGTERM.
"""

import asyncio
import sys
from collections.abc import Callable
from typing import Any

from recserve import console
from recserve.proto import feedback_pb2
from recserve.proto import recommender_pb2 as pb

PATH = "/recserve.v1.Recommender/Recommend"
RECEIVE_BATCH = 64
REPLY_BYTES = 420


def main() -> None:
    """Runs the server that the arguments name."""
    kind, transport = sys.argv[1:]
    if kind == "chain":
        serve_chain(transport)
    elif kind == "discard":
        serve_grpcio("/recserve.v1.Feedback/Record", recorded)
    elif transport == "native":
        serve_native()
    else:
        serve_grpcio(PATH, lambda data: bytes(REPLY_BYTES))


def recorded(data: bytes) -> bytes:
    """Answers a ``RecordRequest`` as if its events were durable."""
    n_events = len(feedback_pb2.RecordRequest.FromString(data).events)
    return feedback_pb2.RecordResponse(stored=n_events, durability=feedback_pb2.POWER).SerializeToString()


def announce(address: str) -> None:
    """Tells the parent where to ask."""
    console.stdout.file.write(f"{address}\n")
    console.stdout.file.flush()


def serve_native() -> None:
    """Answers each batch of calls with the same bytes."""
    from pygrpc_native import EVENT_CALL, NativeGrpcFront

    front = NativeGrpcFront("127.0.0.1:0", [(PATH, False)], io_threads=1)
    front.start()
    reply = bytes(REPLY_BYTES)
    announce(f"127.0.0.1:{front.bound_port}")
    while (events := front.recv_batch(RECEIVE_BATCH)) is not None:
        for kind, call_id, *_ in events:
            if kind == EVENT_CALL:
                front.respond(call_id, reply)


def serve_grpcio(path: str, reply: Callable[[bytes], bytes]) -> None:
    """Answers one method with ``reply``, on grpc.aio and uvloop, bytes to bytes."""
    import grpc
    import uvloop

    async def echo(data: bytes, context: Any) -> bytes:
        return reply(data)

    async def serve() -> None:
        server = grpc.aio.server()
        service, _, name = path[1:].partition("/")
        handler = grpc.unary_unary_rpc_method_handler(echo)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {name: handler}),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        announce(f"127.0.0.1:{port}")
        await server.wait_for_termination()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())


def serve_chain(transport: str) -> None:
    """Answers a decoded request with an empty slate, through authorisation, admission and observers."""
    import signal

    from recserve.engine.server.admission import Admission
    from recserve.engine.server.chain import Chain
    from recserve.engine.server.config import ServerConfig
    from recserve.engine.server.listeners import new_transport
    from recserve.engine.server.methods import Method, MethodTable

    slate = pb.Slate(bundle_version="v" * REPLY_BYTES)
    method = Method(
        path=PATH,
        request=pb.RecommendRequest,
        response=pb.Slate,
        handler=lambda request, call: call.reply(slate),
        scope="recommend",
    )
    config = ServerConfig(port=0, transport=transport, max_in_flight=1000)
    chain = Chain(
        MethodTable([method]),
        Admission(config.max_in_flight),
        default_deadline_seconds=1.0,
        max_message_bytes=config.max_message_bytes,
    )
    announce(new_transport(chain, config, chain.methods).start())
    signal.sigwait({signal.SIGTERM})


if __name__ == "__main__":
    main()
