"""One HTTP port: uvicorn on an event loop of its own thread."""

import asyncio
import logging
import socket
import threading
from collections.abc import Sequence
from typing import Any

import uvicorn
import uvloop

from recserve.errors import ConfigError

KEEP_ALIVE_SECONDS = 30
# Line and headers of a request.
MAX_HEAD_BYTES = 16 << 10
BACKLOG = 1024
# Its lines are no JSON, and each malformed request of a stranger would write one. What a handler raises is
# logged by site.py.
logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)


class HttpListener:
    """Serves an ASGI application on one address."""

    def __init__(
        self,
        app: Any,
        name: str,
        host: str,
        ports: Sequence[int],
        *,
        max_connections: int,
        reuse_port: bool = False,
    ) -> None:
        """``ports``: the first free one is taken; ``reuse_port``: other processes may bind it as well."""
        self._name = name
        self._host = host
        self._ports = ports
        self._reuse_port = reuse_port
        self._loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                access_log=False,
                server_header=False,
                # Who connects is who connects: a header must not decide that.
                proxy_headers=False,
                limit_concurrency=max_connections,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=1,
                h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            )
        )
        self._thread = threading.Thread()

    def start(self) -> str:
        """Binds and accepts; returns HOST:PORT. Raises :class:`ConfigError` when the address is taken."""
        shown = f"[{self._host}]" if ":" in self._host else self._host
        for port in self._ports:
            try:
                listening = self._bind(port)
                break
            except OSError as error:
                last = error
        else:
            raise ConfigError(
                f"{self._name} address",
                found=f"{shown}:{self._ports[-1]}",
                expected="free to bind",
                cure=f"Choose another --{self._name}-port.",
            ) from last
        self._thread = threading.Thread(
            target=self._run, args=(listening,), name=f"recserve-{self._name}", daemon=True
        )
        self._thread.start()
        return f"{shown}:{listening.getsockname()[1]}"

    def _bind(self, port: int) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if self._reuse_port:
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listening.bind((self._host, port))
            listening.listen(BACKLOG)
        except OSError:
            listening.close()
            raise
        return listening

    def stop(self) -> None:
        """Accepts nothing new, finishes what is being answered, closes; stopping twice is fine."""
        if self._thread.is_alive():
            self._server.should_exit = True
            self._thread.join()

    def _run(self, listening: socket.socket) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._server.serve(sockets=[listening]))
        finally:
            self._loop.close()
