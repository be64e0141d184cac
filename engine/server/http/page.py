"""The page for people: every route with its fields and a form to try it. One file, nothing from elsewhere."""

import base64
import hashlib
import importlib.resources
import json
from collections.abc import Sequence
from html import escape
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

import recserve
from recserve.engine.server.http.openapi import SCALARS, comment_of, method_name
from recserve.engine.server.http.site import Headers
from recserve.engine.server.methods import Method

# What a form shows first: enough to get an answer from any bundle.
EXAMPLES: dict[str, dict[str, Any]] = {
    "/v1/recommend": {"userId": "", "k": 5, "filter": ""},
    "/v1/recommend-many": {"requests": [{"userId": "", "k": 3}, {"k": 3}]},
    "/v1/recommend-page": {"rows": [{"name": "for you", "request": {"userId": "", "k": 5}}]},
    "/v1/similar-items": {"itemId": "id of an item", "k": 5},
    "/v1/rank": {"userId": "", "itemIds": ["id of an item"]},
    "/v1/why-not": {"request": {"userId": "", "k": 5}, "itemId": "id of an item"},
    "/v1/items": {"itemIds": ["id of an item"]},
}


def page(methods: Sequence[Method], links: Sequence[tuple[str, str]]) -> tuple[bytes, Headers]:
    """Returns the HTML and the headers that forbid it everything but its own style, script and server.

    ``links``: (path, what it is) of the other pages.
    """
    style, script = _asset("page.css"), _asset("page.js")
    listed = "".join(
        f"<li><a href='{escape(path)}'>{escape(path)}</a> {escape(what)}</li>" for path, what in links
    )
    body = "".join(_section(method) for method in methods if method.http)
    html = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>recserve API</title>
<style>{style}</style>
</head>
<body>
<header><h1>recserve <small>{escape(recserve.__version__)}</small></h1>
<p>Which items for this user, now? POST JSON, get JSON; the same methods answer over gRPC.</p>
<ul class="links">{listed}</ul></header>
<main>{body}</main>
<footer><p>Deadline: <code>x-deadline-ms: 500</code>. Request id: <code>x-request-id</code>, echoed.
A refusal is a <code>google.rpc.Status</code>.</p></footer>
<script>{script}</script>
</body>
</html>
"""
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html.encode(), (("content-security-policy", policy), ("referrer-policy", "no-referrer"))


def _section(method: Method) -> str:
    name = method_name(method)
    identity = escape(method.http.strip("/").replace("/", "-"))
    example = json.dumps(EXAMPLES.get(method.http, {}), indent=1)
    rows = "".join(_row(field) for field in method.request.DESCRIPTOR.fields)
    return f"""
<section id="{identity}">
<h2><span>POST</span> {escape(method.http)}</h2>
<p>{escape(comment_of(name))} <small>gRPC: {escape(name)}</small></p>
<table>
<thead><tr><th scope="col">field</th><th scope="col">type</th><th scope="col">what it is</th></tr></thead>
<tbody>{rows}</tbody></table>
<form data-path="{escape(method.http)}">
<label for="{identity}-body">request</label>
<textarea id="{identity}-body" rows="6" spellcheck="false">{escape(example)}</textarea>
<button type="submit">Send</button> <output></output>
<pre tabindex="0" aria-label="answer" hidden></pre>
</form>
</section>"""


def _row(field: FieldDescriptor) -> str:
    cells = (
        f"<code>{escape(field.json_name)}</code>",
        escape(_type(field)),
        escape(comment_of(field.full_name)),
    )
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _type(field: FieldDescriptor) -> str:
    message = field.message_type
    if message is not None and message.GetOptions().map_entry:
        return f"map to {_type(message.fields_by_name['value'])}"
    if message is not None:
        name = str(message.name)
    else:
        name = str(SCALARS.get(field.cpp_type, {"format": "string"}).get("format", "bool"))
    return f"list of {name}" if field.is_repeated else name


def _asset(name: str) -> str:
    folder = importlib.resources.files("recserve.engine.server.http")
    return folder.joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
