"""The HTTP side of a server: which routes stand on which port."""

from collections.abc import Mapping, Sequence

from recserve.engine.addresses import is_local
from recserve.engine.server.chain import Chain
from recserve.engine.server.config import ServerConfig
from recserve.engine.server.http.config import HttpConfig
from recserve.engine.server.http.gateway import gateway_routes
from recserve.engine.server.http.listener import HttpListener
from recserve.engine.server.http.metrics_route import metrics_routes
from recserve.engine.server.http.openapi import openapi
from recserve.engine.server.http.page import page
from recserve.engine.server.http.site import Ask, Handler, Response, Site, json_response
from recserve.engine.server.listeners import is_public
from recserve.engine.server.methods import Method
from recserve.engine.server.telemetry.metrics import Metrics, Sources
from recserve.errors import ConfigError

Routes = dict[str, dict[str, Handler]]
HTML = "text/html; charset=utf-8"
PAGES = {
    "/openapi.json": "the API for tools",
    "/healthz": "whether the process lives",
    "/readyz": "whether it answers requests",
    "/metrics": "Prometheus",
}


class HttpFront:
    """The gateway's port and the metrics' port, whichever are wanted; one when they may be one."""

    def __init__(
        self,
        chain: Chain,
        server: ServerConfig,
        config: HttpConfig,
        *,
        metrics: Metrics,
        sources: Sources,
        probes: Routes,
    ) -> None:
        watching = {**probes, **metrics_routes(metrics, sources)}
        self._listeners: dict[str, HttpListener] = {}
        if config.port is not None:
            _check_bind("http.host", config.host, server)
            # Metrics are for those who run the server, not for those who may ask it.
            # Of several processes the kernel picks one: its numbers alone would mislead.
            together = config.metrics_port is None and is_local(config.host) and server.workers == 1
            if server.workers > 1 and config.port == 0:
                raise ConfigError(
                    "http.port", found=0, expected="a port that all workers can bind", cure="Name one."
                )
            methods = [method for method in chain.methods if method.http and is_public(method, server)]
            gateway = gateway_routes(chain, methods, server.max_message_bytes)
            routes = {**gateway, **(watching if together else probes)}
            site = Site({**routes, **_documents(methods, routes)})
            self._listeners["http"] = HttpListener(
                site,
                "http",
                config.host,
                [config.port],
                max_connections=config.max_connections,
                reuse_port=server.workers > 1,
            )
        if config.metrics_port is not None:
            _check_bind("http.metrics_host", config.metrics_host, server)
            self._listeners["metrics"] = HttpListener(
                Site(watching),
                "metrics",
                config.metrics_host,
                # Each worker process has its own: P, P + 1, …
                [config.metrics_port + i for i in range(server.workers if config.metrics_port else 1)],
                max_connections=config.max_connections,
            )

    def start(self) -> dict[str, str]:
        """Binds; returns the URL of each port by name ("http", "metrics").

        Raises :class:`ConfigError` when an address is taken.
        """
        urls = {}
        for name, listener in self._listeners.items():
            try:
                urls[name] = f"http://{listener.start()}"
            except BaseException:
                self.stop()
                raise
        return urls

    def stop(self) -> None:
        """Closes both ports."""
        for listener in self._listeners.values():
            listener.stop()


def _check_bind(name: str, host: str, server: ServerConfig) -> None:
    if not server.insecure_bind and not is_local(host):
        raise ConfigError(
            name,
            found=host,
            expected="a loopback address",
            cure="HTTP has no TLS here: put a TLS proxy in front; --insecure-bind goes without.",
        )


def _documents(methods: Sequence[Method], routes: Mapping[str, object]) -> Routes:
    links = [(path, what) for path, what in PAGES.items() if path in routes or path == "/openapi.json"]
    document = json_response(openapi(methods))
    html, headers = page(methods, links)
    human = Response(html, media_type=HTML, headers=headers)

    async def describe(ask: Ask) -> Response:
        return document

    async def show(ask: Ask) -> Response:
        return human

    return {"/openapi.json": {"GET": describe}, "/": {"GET": show}, "/docs": {"GET": show}}
