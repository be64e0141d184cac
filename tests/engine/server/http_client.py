"""A plain HTTP client for tests: sends JSON, returns (status, headers, value)."""

import http.client
import json
from typing import Any

TIMEOUT_SECONDS = 30


class HttpCaller:
    """One keep-alive connection to ``url``."""

    def __init__(self, url: str) -> None:
        self.connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=TIMEOUT_SECONDS)

    def __enter__(self) -> "HttpCaller":
        return self

    def __exit__(self, *raised: object) -> None:
        self.connection.close()

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Sends one request; header names are written with ``_`` for ``-``."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.connection.request(method, path, body=body, headers=named)
        answer = self.connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()

    def get(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Gets a page."""
        return self.ask("GET", path)

    def post(self, path: str, value: Any, **headers: str) -> tuple[int, dict[str, str], Any]:
        """Posts ``value`` as JSON (bytes as they are); returns the answer's JSON."""
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        code, answered, data = self.ask("POST", path, body, **{"content_type": "application/json", **headers})
        return code, answered, json.loads(data)


def reason_of(status: dict[str, Any]) -> str:
    """Returns the reason of a google.rpc.Status in JSON."""
    [reason] = [detail["reason"] for detail in status["details"] if "reason" in detail]
    return str(reason)
