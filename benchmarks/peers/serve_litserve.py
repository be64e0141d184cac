"""LitServe with batches: ``python serve_litserve.py FOLDER PORT``."""

import sys
from typing import Any

import litserve
from top_list import TopList

MAX_BATCH = 64
# Seconds that the first request of a batch waits for others.
BATCH_TIMEOUT = 0.001


class TopListApi(litserve.LitAPI):
    """One worker process that answers batches."""

    def setup(self, device: str) -> None:
        """Loads the model in the worker."""
        self.top_list = TopList(sys.argv[1])

    def decode_request(self, request: dict[str, Any]) -> dict[str, Any]:
        """Takes the body as it is."""
        return request

    def batch(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Keeps the batch a list."""
        return list(inputs)

    def predict(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Answers a batch."""
        return self.top_list.answer(inputs)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Gives each caller the own answer."""
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """Sends the answer as it is."""
        return output


if __name__ == "__main__":
    print("starting", flush=True)
    api = TopListApi(max_batch_size=MAX_BATCH, batch_timeout=BATCH_TIMEOUT, api_path="/v1/recommend")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
