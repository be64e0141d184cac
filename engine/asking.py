"""How commands ask a running server: RECSERVE_TOKEN and RECSERVE_CA say who asks, and whom."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def asking(server: str, timeout: float, stub: Callable[[Any], Any]) -> Iterator[Callable[[str, Any], Any]]:
    """Yields ``ask(method, message)``, which raises RemoteError for a refusal; ``stub``: of the service."""
    import grpc

    from recserve.engine.connection import open_channel
    from recserve.engine.credentials import Credentials
    from recserve.engine.wire.status import error_from_call

    credentials = Credentials(
        ca=os.environ.get("RECSERVE_CA") or None, token=os.environ.get("RECSERVE_TOKEN", "")
    )
    with open_channel(grpc, server, credentials) as channel:
        service = stub(channel)

        def ask(method: str, message: Any) -> Any:
            try:
                return getattr(service, method)(message, timeout=timeout, metadata=credentials.metadata())
            except grpc.RpcError as error:
                raise error_from_call(error) from None

        yield ask
