"""A small server that answers as a peer does: ``python stand_in.py FOLDER PORT``."""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from recserve.benchmarks.peers.top_list import TopList

top_list = TopList(sys.argv[1])


class Handler(BaseHTTPRequestHandler):
    """Answers one list after the other."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Answers one request."""
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        [answer] = top_list.answer([asked])
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


sys.stdout.write("starting\n")
sys.stdout.flush()
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
