"""TLS 1.2 and 1.3 for the grpcio transport; new certificates are taken up without losing a connection.

gRPC's core asks before each handshake which certificate to show, so a renewed pair serves the next connection
while the open ones go on. A pair that does not fit together is refused, and the old one stays.
"""

import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc

from recserve.engine.server.config import TlsConfig
from recserve.engine.server.security.files import Reloaded
from recserve.errors import ConfigError
from recserve.permissions import check_secret, read_file

# The names of gRPC's authentication context → how the policy writes them.
IDENTITY_PROPERTIES = {"peer_uri": "uri:", "peer_dns": "dns:", "x509_subject": "subject:"}


class ServerTls:
    """The certificate of a server, and whose clients' certificates it accepts."""

    def __init__(self, config: TlsConfig) -> None:
        self._config = config
        paths = [path for path in (config.certificate, config.key, config.client_ca) if path is not None]
        # Beside a handshake, three calls of stat are nothing.
        self._files = Reloaded(paths, self._load, every_seconds=0.0)
        self._shown = self._files.get()

    def credentials(self) -> Any:
        """Returns gRPC's server credentials."""
        return grpc.dynamic_ssl_server_credentials(
            self._shown, self._fetch, require_client_authentication=self._config.client_ca is not None
        )

    def identities(self, context: Any) -> tuple[str, ...]:
        """Returns the names of the caller's verified certificate, none without mutual TLS."""
        if self._config.client_ca is None:
            return ()
        return identities(context.auth_context())

    def _fetch(self) -> Any:
        """Called by the core before each handshake; None: as before."""
        files = self._files.get()
        if files is self._shown:
            return None
        self._shown = files
        return files

    def _load(self) -> Any:
        certificate, key, client_ca = self._config.certificate, self._config.key, self._config.client_ca
        check_secret(key, "TLS key")
        chain, secret = read_file(certificate, "TLS certificate"), read_file(key, "TLS key")
        roots = read_file(client_ca, "client CA") if client_ca is not None else None
        _check_pair(certificate, key)
        if client_ca is not None:
            _check_roots(client_ca)
        return grpc.ssl_server_certificate_configuration([(secret, chain)], root_certificates=roots)


def identities(properties: Mapping[str, Sequence[bytes]]) -> tuple[str, ...]:
    """Returns the names of gRPC's authentication context as the policy writes them."""
    return tuple(
        prefix + name.decode(errors="replace")
        for property_, prefix in IDENTITY_PROPERTIES.items()
        for name in properties.get(property_, ())
    )


def _check_pair(certificate: Path, key: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # An encrypted key would ask the terminal for its password.
        context.load_cert_chain(certificate, key, password=lambda: b"")
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(
            f"TLS certificate {certificate} with key {key}",
            found="not a pair",
            expected="a PEM chain and its own, unencrypted PEM key",
        ) from error


def _check_roots(client_ca: Path) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(client_ca)
    except ssl.SSLError as error:
        raise ConfigError(
            f"client CA {client_ca}", found="not readable", expected="PEM certificates"
        ) from error
