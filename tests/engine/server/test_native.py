"""What the native transport does by itself, over a front that hands out what the test says."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from recserve.engine.server.admission import Admission
from recserve.engine.server.call import Call
from recserve.engine.server.chain import Chain
from recserve.engine.server.config import ServerConfig
from recserve.engine.server.methods import MethodTable
from tests.engine.server.local import echo_method

CALL_ID, METHOD_ID = 7, 0
# In which a thread that need not wait has received.
SOON_SECONDS = 0.1


class Front:
    """Hands out batches of events, one a call."""

    def __init__(self, batches: list[Any]) -> None:
        self._batches = batches

    def recv_batch_details(self, n: int, milliseconds: int) -> Any:
        return self._batches.pop(0)


def test_a_cancel_that_another_thread_receives_finds_its_call() -> None:
    native = pytest.importorskip("pygrpc_native")
    from recserve.engine.server.transports.native import NativeTransport

    entered: list[Call] = []
    methods = MethodTable([echo_method(lambda request, call: entered.append(call))])
    chain = Chain(methods, Admission(max_in_flight=2), default_deadline_seconds=1000.0, max_message_bytes=100)
    transport = NativeTransport(chain, ServerConfig(), methods)

    class Arriving(list[Any]):
        """A batch whose first look lets another thread receive."""

        def __iter__(self) -> Iterator[Any]:
            if not other.is_alive() and other.ident is None:
                other.start()
                other.join(SOON_SECONDS)
            return super().__iter__()

    arrived = (native.EVENT_CALL, CALL_ID, METHOD_ID, b"x", None, ((), "peer", None))
    cancelled = (native.EVENT_CALL + 1, CALL_ID, METHOD_ID, b"", None, None)
    transport._front = Front([Arriving([arrived]), [cancelled]])
    other = threading.Thread(target=transport._receive)
    assert transport._receive()
    other.join()
    chain.close()
    assert all(call.was_cancelled for call in entered)
    assert len(entered) == 1
    assert chain.admission.in_flight == 0
