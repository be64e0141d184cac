"""TLS by real handshakes: versions, wrong authorities, expired certificates, and new files while running."""

import asyncio
import shutil
import socket
import ssl
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from recserve.engine import Engine, Request
from recserve.engine.client import AsyncRecommenderClient, RecommenderClient
from recserve.engine.credentials import Credentials
from recserve.engine.server.app import Server
from recserve.engine.server.config import ServerConfig
from recserve.engine.wire.status import RemoteError
from recserve.errors import ConfigError
from tests.engine.server.security.certificates import Authority, KeyPair, write_secret
from tests.engine.server.security.conftest import Estate

TIMEOUT_SECONDS = 30


class Site:
    """A running server whose certificate files the test may replace."""

    def __init__(self, estate: Estate, folder: Path, **settings: Any) -> None:
        self.authority = estate.authority
        self.pair = KeyPair(folder / "tls.crt", folder / "tls.key")
        self.install(estate.server)
        self.server = Server(
            ServerConfig(
                port=0,
                tls_certificate=self.pair.certificate,
                tls_key=self.pair.key,
                default_deadline_ms=30_000,
                **settings,
            )
        )
        self.address = self.server.start()

    def install(self, pair: KeyPair) -> None:
        """Replaces both files as tools do: written beside, renamed."""
        for new, old in ((pair.certificate, self.pair.certificate), (pair.key, self.pair.key)):
            beside = old.with_suffix(".new")
            write_secret(beside, new.read_bytes())
            beside.rename(old)

    def shown_name(self) -> str:
        """Returns the name of the certificate that a new connection is shown."""
        context = ssl.create_default_context(cafile=self.authority.ca)
        context.set_alpn_protocols(["h2"])
        context.check_hostname = False
        with self._connect() as plain, context.wrap_socket(plain) as tls:
            subject: Any = (tls.getpeercert() or {})["subject"]
            return str(subject[0][0][1])

    def version(self, version: ssl.TLSVersion) -> str | None:
        """Returns the version that a handshake with ``version`` only ends with; raises OSError."""
        context = ssl.create_default_context(cafile=self.authority.ca)
        context.set_alpn_protocols(["h2"])
        # Lets this side speak the old versions at all.
        context.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = context.maximum_version = version
        with self._connect() as plain, context.wrap_socket(plain, server_hostname="server.test") as tls:
            return tls.version()

    def client(self, **changes: Any) -> RecommenderClient:
        return RecommenderClient(
            self.address, timeout=TIMEOUT_SECONDS, credentials=self.credentials(**changes)
        )

    def credentials(self, **changes: Any) -> Credentials:
        return Credentials(**{"ca": self.authority.ca, "server_name": "server.test", **changes})

    def _connect(self) -> socket.socket:
        host, _, port = self.address.rpartition(":")
        return socket.create_connection((host, int(port)), TIMEOUT_SECONDS)


@pytest.fixture
def site(estate: Estate, tmp_path: Path, engine: Engine) -> Iterator[Site]:
    made = Site(estate, tmp_path)
    made.server.serve(engine)
    yield made
    made.server.stop()


def test_both_clients_speak_tls(site: Site) -> None:
    with site.client() as client:
        assert len(client.recommend(Request(k=3)).items) == 3

    async def ask() -> int:
        async with AsyncRecommenderClient(
            site.address, timeout=TIMEOUT_SECONDS, credentials=site.credentials()
        ) as client:
            return len((await client.recommend(Request(k=3))).items)

    assert asyncio.run(ask()) == 3


def test_both_clients_show_key_and_certificate(estate: Estate, tmp_path: Path, engine: Engine) -> None:
    key = estate.new_key("recommend")
    site = Site(estate, tmp_path, policy=estate.policy, tls_client_ca=estate.authority.ca)
    site.server.serve(engine)
    own = {"certificate": estate.web.certificate, "key": estate.web.key}
    given = iter(["rsk_bad", key])
    try:
        with site.client(**own) as client:
            assert client.recommend(Request(k=1)).items
        with site.client(**own, token=lambda: next(given)) as client:
            with pytest.raises(RemoteError, match="authorization is missing or not accepted"):
                client.recommend(Request(k=1))
            assert client.recommend(Request(k=1)).items

        async def ask() -> Any:
            credentials = site.credentials(**own, token=key)
            async with AsyncRecommenderClient(
                site.address, timeout=TIMEOUT_SECONDS, credentials=credentials
            ) as client:
                return await client.recommend(Request(k=1))

        assert asyncio.run(ask()).items
    finally:
        site.server.stop()


def test_a_client_refuses_a_server_that_it_does_not_know(site: Site, estate: Estate, tmp_path: Path) -> None:
    for changes in ({"ca": Authority(tmp_path, "stranger").ca}, {"server_name": "another.test"}):
        with site.client(**changes) as client, pytest.raises(RemoteError) as caught:
            client.recommend(Request(k=1))
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    site.install(estate.authority.issue("server.test", file="old", expired=True))
    with site.client() as client, pytest.raises(RemoteError) as caught:
        client.recommend(Request(k=1))
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE


def test_plain_text_is_not_answered(site: Site) -> None:
    with (
        RecommenderClient(site.address, timeout=TIMEOUT_SECONDS) as client,
        pytest.raises(RemoteError) as caught,
    ):
        client.recommend(Request(k=1))
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE


def test_versions_before_1_2_are_refused(site: Site) -> None:
    assert site.version(ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
    assert site.version(ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
    for old in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
        with pytest.raises(OSError, match=r"EOF|SSL|reset"):
            site.version(old)


def test_a_renewed_certificate_is_shown_and_open_connections_go_on(site: Site, estate: Estate) -> None:
    with site.client() as client:
        assert client.recommend(Request(k=1)).items
        assert site.shown_name() == "server.test"
        site.install(estate.authority.issue("renewed.test"))
        assert site.shown_name() == "renewed.test"
        # The client would refuse a new handshake: the name is another one now.
        assert client.recommend(Request(k=1)).items
    with site.client(server_name="renewed.test") as client:
        assert client.recommend(Request(k=1)).items


def test_files_that_do_not_fit_together_leave_the_old_certificate(site: Site, estate: Estate) -> None:
    half = estate.authority.issue("half.test")
    shutil.copy(half.certificate, site.pair.certificate)
    assert site.shown_name() == "server.test"
    site.pair.certificate.unlink()
    assert site.shown_name() == "server.test"
    site.install(half)
    assert site.shown_name() == "half.test"


def test_bad_files_refuse_to_start(estate: Estate, tmp_path: Path) -> None:
    other = estate.authority.issue("pair.test")
    open_key = tmp_path / "open.key"
    shutil.copy(other.key, open_key)
    open_key.chmod(0o644)
    for certificate, key, client_ca, words in (
        (other.certificate, estate.server.key, None, "not a pair"),
        (other.certificate, tmp_path / "none", None, "no such file"),
        (other.certificate, open_key, None, "mode 0644.*chmod 600"),
        (other.certificate, other.key, other.key, "expected PEM certificates"),
    ):
        config = ServerConfig(
            port=0, tls_certificate=certificate, tls_key=key, tls_client_ca=client_ca, policy=estate.policy
        )
        with pytest.raises(ConfigError, match=words):
            Server(config)
