"""``/healthz`` and ``/readyz``: whether the process should live, and whether it should get requests."""

from collections.abc import Callable

from recserve.engine.server.http.site import Ask, Handler, Response, json_response


def probe_routes(is_alive: Callable[[], bool], is_ready: Callable[[], bool]) -> dict[str, dict[str, Handler]]:
    """Returns both probes: 200 or 503, each with one word for a person."""

    async def healthz(ask: Ask) -> Response:
        alive = is_alive()
        return json_response({"status": "alive" if alive else "failed"}, code=200 if alive else 503)

    async def readyz(ask: Ask) -> Response:
        ready = is_ready()
        return json_response({"status": "ready" if ready else "not ready"}, code=200 if ready else 503)

    return {"/healthz": {"GET": healthz}, "/readyz": {"GET": readyz}}
