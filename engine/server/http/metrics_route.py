"""``GET /metrics`` in Prometheus' text format."""

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from recserve.engine.server.http.site import Ask, Handler, Response
from recserve.engine.server.telemetry.metrics import Metrics, Sources, new_registry
from recserve.engine.server.telemetry.triton import triton_lines


def metrics_routes(metrics: Metrics, sources: Sources) -> dict[str, dict[str, Handler]]:
    """Returns the route. Always the plain format: Triton's counters have no name that OpenMetrics allows."""
    registry: CollectorRegistry = new_registry(metrics, sources)

    async def answer(ask: Ask) -> Response:
        text: bytes = generate_latest(registry)
        text += triton_lines(metrics.counts(), sources).encode()
        return Response(text, media_type=CONTENT_TYPE_PLAIN_0_0_4)

    return {"/metrics": {"GET": answer}}
