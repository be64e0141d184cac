"""Ray Serve with batches, one replica behind its HTTP proxy: ``python serve_ray.py FOLDER PORT``."""

import sys
import threading
from typing import Any

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

MAX_BATCH = 64
# Seconds that the first request of a batch waits for others.
BATCH_TIMEOUT = 0.001


@serve.deployment(max_ongoing_requests=256, ray_actor_options={"num_cpus": 1})
class TopListDeployment:
    """One process that answers batches."""

    def __init__(self, folder: str, code: str) -> None:
        sys.path.insert(0, code)
        from top_list import TopList

        self.top_list = TopList(folder)

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=BATCH_TIMEOUT)
    async def answer(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Answers a batch."""
        return self.top_list.answer(requests)

    async def __call__(self, request: Request) -> JSONResponse:
        """Answers one request; as a response of known length, or the proxy would send it in chunks."""
        return JSONResponse(await self.answer(await request.json()))


if __name__ == "__main__":
    print("starting", flush=True)
    ray.init(include_dashboard=False, log_to_driver=False, num_cpus=2)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
    serve.run(TopListDeployment.bind(sys.argv[1], sys.path[0]), route_prefix="/v1/recommend")
    threading.Event().wait()
