"""The authorisation matrix: every method of the running server × principal × address × transport."""

import http.client
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import jwt
import pytest
from google.protobuf import empty_pb2
from google.protobuf.message import Message

from recserve.engine.config import EngineConfig
from recserve.engine.credentials import Credentials
from recserve.engine.server.app import Server
from recserve.engine.server.config import ServerConfig
from recserve.engine.server.http.config import HttpConfig
from recserve.engine.server.methods import Method
from recserve.engine.server.remembering import Remembering
from recserve.engine.server.scopes import ADMIN_SCOPES, SCOPES
from recserve.engine.state.config import StateConfig
from recserve.proto import recommender_pb2 as pb
from tests.engine.server.security.asking import ALLOWED, NO_CONNECTION, TIMEOUT_SECONDS, open_channel, outcome
from tests.engine.server.security.certificates import Authority
from tests.engine.server.security.conftest import EVERYTHING, NOW, Estate

# Named here again: the test must not believe the code which methods are for administrators.
ADMIN = {"model:admin"}
ADMIN_METHOD = Method(
    path="/test.Admin/Act",
    request=empty_pb2.Empty,
    response=empty_pb2.Empty,
    handler=lambda request, call: call.reply(empty_pb2.Empty()),
    scope="model:admin",
)
TRANSPORTS = ("tcp", "unix", "native")


@dataclass(frozen=True)
class Shown:
    """What a caller shows, and the scopes that the policy gives for it; None: not accepted."""

    scopes: frozenset[str] | None
    authorization: tuple[str, ...] = ()
    certificate: Any = None
    connects: bool = True


def principals(estate: Estate) -> dict[str, Shown]:
    """Callers with tokens."""
    everything, some = frozenset(EVERYTHING), frozenset({"items:read", "health"})
    good = estate.new_key(*everything)
    public_key = estate.tokens.jwks.read_text() * 2
    past = int(NOW.timestamp()) - 3600
    return {
        "none": Shown(None),
        "garbage": Shown(None, ("Bearer garbage",)),
        "empty": Shown(None, ("Bearer ",)),
        "other scheme": Shown(None, (f"Basic {good}",)),
        "key twice": Shown(None, (f"Bearer {good}", f"Bearer {good}")),
        "unknown key": Shown(None, ("Bearer rsk_00000000_" + "A" * 43,)),
        "key cut short": Shown(None, (f"Bearer {good[:-1]}",)),
        "expired key": Shown(None, (f"Bearer {estate.new_key(*everything, expired=True)}",)),
        "revoked key": Shown(None, (f"Bearer {estate.new_key(*everything, revoked=True)}",)),
        "key of wrong scope": Shown(frozenset(), (f"Bearer {estate.new_key('metrics:read')}",)),
        "key of some scopes": Shown(some, (f"Bearer {estate.new_key(*some)}",)),
        "key": Shown(everything, (f"bearer {good}",)),
        "token": Shown(everything, (f"Bearer {estate.tokens.make(scope=' '.join(everything))}",)),
        "token of some scopes": Shown(some, (f"Bearer {estate.tokens.make(scope=list(some))}",)),
        "token of no scope": Shown(frozenset(), (f"Bearer {estate.tokens.make()}",)),
        "expired token": Shown(None, (f"Bearer {estate.tokens.make(exp=past, scope='recommend')}",)),
        "unsigned token": Shown(
            None, ("Bearer " + jwt.encode({"sub": "x"}, "", algorithm="none", headers={"kid": "k1"}),)
        ),
        "token signed with the public key": Shown(
            None, (f"Bearer {estate.tokens.make(key=public_key, algorithm='HS256')}",)
        ),
    }


def certified(estate: Estate) -> dict[str, Shown]:
    """Callers with certificates, for mutual TLS."""
    everything = frozenset(EVERYTHING)
    authority = estate.authority
    stranger = Authority(estate.folder, "stranger").issue("web.test", file="forged", uri="spiffe://test/web")
    expired = authority.issue("web.test", file="expired", uri="spiffe://test/web", expired=True)
    some = estate.new_key("items:read", "health")
    return {
        "certificate": Shown(everything, certificate=estate.web),
        "certificate of wrong scope": Shown(frozenset(), certificate=authority.issue("metrics.test")),
        "certificate without entry": Shown(None, certificate=authority.issue("other.test")),
        "certificate, bad key": Shown(None, ("Bearer rsk_x",), estate.web),
        "certificate, key of some scopes": Shown(
            frozenset({"items:read", "health"}), (f"Bearer {some}",), estate.web
        ),
        "no certificate": Shown(None, connects=False),
        "certificate of another authority": Shown(None, certificate=stranger, connects=False),
        "expired certificate": Shown(None, certificate=expired, connects=False),
    }


@contextmanager
def serving(estate: Estate, transport: str, *, mutual: bool = False) -> Iterator[tuple[Server, str]]:
    tls: dict[str, Any] = {"tls_certificate": estate.server.certificate, "tls_key": estate.server.key}
    if mutual:
        tls["tls_client_ca"] = estate.authority.ca
    where: dict[str, Any] = {
        "tcp": {"host": "127.0.0.1", **tls},
        "unix": {"host": f"unix:{estate.folder}/{'m' if mutual else 't'}.sock", **tls},
        "native": {"transport": "native"},
    }[transport]
    config = ServerConfig(port=0, policy=estate.policy, admin_address="127.0.0.1:0", **where)
    with Remembering(StateConfig(url="memory://"), EngineConfig(), config) as remembering:
        methods = [ADMIN_METHOD, *remembering.methods()]
        server = Server(config, router=remembering.router, extra_methods=methods)
        try:
            yield server, server.start()
        finally:
            server.stop()


def expected(method: Method, shown: Shown, *, admin: bool, local_plain: bool) -> str:
    """What the policy file says."""
    if not shown.connects:
        return NO_CONNECTION
    # Reflection is public on loopback over grpcio only.
    served = admin or (method.scope not in ADMIN and (method.scope != "reflection" or local_plain))
    if not served:
        return "UNIMPLEMENTED"
    if shown.scopes is None:
        return "UNAUTHENTICATED"
    return ALLOWED if method.scope in shown.scopes else "PERMISSION_DENIED"


def check(estate: Estate, server: Server, public: str, transport: str, shown_by: dict[str, Shown]) -> int:
    """Asks everything of every address as everybody; returns how many questions that were."""
    asked, wrong = 0, []
    for name, shown in shown_by.items():
        for admin, address in ((False, public), (True, server.admin_address)):
            pair = shown.certificate
            credentials = Credentials(
                ca=None if transport == "native" else estate.authority.ca,
                server_name="" if transport == "native" else "server.test",
                certificate=pair and pair.certificate,
                key=pair and pair.key,
            )
            metadata = [("authorization", text) for text in shown.authorization]
            with open_channel(address, credentials) as channel:
                for method in server.chain.methods:
                    found = outcome(channel, method, metadata)
                    want = expected(method, shown, admin=admin, local_plain=transport != "native")
                    asked += 1
                    if found != want:
                        wrong.append((name, "admin" if admin else "public", method.path, found, want))
    assert wrong == []
    return asked


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_every_method_is_open_to_whom_the_policy_names(estate: Estate, transport: str) -> None:
    if transport == "native":
        pytest.importorskip("pygrpc_native")
    shown = principals(estate)
    with serving(estate, transport) as (server, address):
        assert check(estate, server, address, transport, shown) == len(shown) * 2 * len(server.chain.methods)


@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_certificates_are_principals(estate: Estate, transport: str) -> None:
    shown = certified(estate)
    with serving(estate, transport, mutual=True) as (server, address):
        assert check(estate, server, address, transport, shown) == len(shown) * 2 * len(server.chain.methods)


def test_explanations_need_a_scope_of_their_own(estate: Estate) -> None:
    plain, fast = pb.RecommendRequest(explain="none"), pb.RecommendRequest(explain="fast")
    asked: dict[str, tuple[Message, Message]] = {
        "/recserve.v1.Recommender/Recommend": (plain, fast),
        "/recserve.v1.Recommender/RecommendMany": (
            pb.RecommendManyRequest(requests=[plain]),
            pb.RecommendManyRequest(requests=[plain, fast]),
        ),
        "/recserve.v1.Recommender/RecommendPage": (
            pb.RecommendPageRequest(rows=[pb.PageRow(name="a", request=plain)]),
            pb.RecommendPageRequest(rows=[pb.PageRow(name="a", request=fast)]),
        ),
    }
    credentials = Credentials(ca=estate.authority.ca, server_name="server.test")
    keys = {
        scopes: [("authorization", f"Bearer {estate.new_key(*scopes)}")]
        for scopes in (("recommend",), ("explain",), ("recommend", "explain"))
    }
    with serving(estate, "tcp") as (server, address), open_channel(address, credentials) as channel:
        methods = {method.path: method for method in server.chain.methods}
        for path, messages in asked.items():
            found = {
                scopes: [outcome(channel, methods[path], key, one.SerializeToString()) for one in messages]
                for scopes, key in keys.items()
            }
            assert found == {
                ("recommend",): [ALLOWED, "PERMISSION_DENIED"],
                ("explain",): ["PERMISSION_DENIED", "PERMISSION_DENIED"],
                ("recommend", "explain"): [ALLOWED, ALLOWED],
            }


def test_the_json_gateway_asks_the_same(estate: Estate) -> None:
    shown_by = principals(estate)
    config = ServerConfig(port=0, policy=estate.policy, admin_address="127.0.0.1:0")
    # Even an admin method that somebody gave a route has none here.
    server = Server(config, extra_methods=[replace(ADMIN_METHOD, http="/test/act")], http=HttpConfig(port=0))
    wrong = []
    routes = [method for method in server.chain.methods if method.http]
    assert len(routes) >= 2
    try:
        server.start()
        host, port = server.urls["http"].removeprefix("http://").split(":")
        for name, shown in shown_by.items():
            for method in routes:
                found = _posted(host, int(port), method.http, shown.authorization)
                want = {"UNIMPLEMENTED": 404, "UNAUTHENTICATED": 401, "PERMISSION_DENIED": 403}.get(
                    expected(method, shown, admin=False, local_plain=True)
                )
                if found != want if want else found in (401, 403, 404):
                    wrong.append((name, method.path, found, want))
    finally:
        server.stop()
    assert wrong == []


def _posted(host: str, port: int, path: str, authorization: tuple[str, ...]) -> int:
    """Returns the HTTP status; a method that lets the caller in answers 503: no engine is loaded."""
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_SECONDS)
    try:
        connection.putrequest("POST", path)
        for name, value in (("Content-Type", "application/json"), ("Content-Length", "2")):
            connection.putheader(name, value)
        for value in authorization:
            connection.putheader("Authorization", value)
        connection.endheaders(b"{}")
        return connection.getresponse().status
    finally:
        connection.close()


def test_every_method_asks_for_a_documented_scope(estate: Estate) -> None:
    with serving(estate, "tcp") as (server, _):
        paths = {method.path: method.scope for method in server.chain.methods}
    assert {scope for scope in paths.values() if scope not in SCOPES} == set()
    assert "/grpc.health.v1.Health/Check" in paths
    assert any("ServerReflection" in path for path in paths)
    feedback = {path.rpartition("/")[2]: scope for path, scope in paths.items() if "v1.Feedback" in path}
    catalogue = {path.rpartition("/")[2]: scope for path, scope in paths.items() if "v1.Catalogue" in path}
    assert catalogue == {"UpsertItems": "items:write", "RemoveItems": "items:write"}
    assert feedback == {
        "Record": "feedback:write",
        "RecordStream": "feedback:write",
        "GetHistory": "history:read",
        "ExportUser": "history:read",
        "EraseUser": "history:erase",
    }


def test_a_public_scope_needs_no_credentials(estate: Estate) -> None:
    policy = estate.folder / "public.toml"
    policy.write_text('public = ["health"]\n')
    server = Server(ServerConfig(port=0, policy=policy))
    try:
        address = server.start()
        with open_channel(address, Credentials()) as channel:
            for method in server.chain.methods:
                want = ALLOWED if method.scope == "health" else "UNAUTHENTICATED"
                if method.scope in ADMIN_SCOPES:
                    want = "UNIMPLEMENTED"  # It is not on this address at all.
                assert outcome(channel, method) == want
    finally:
        server.stop()
