"""Certificates, keys and tokens, made anew for each run."""

import datetime
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from recserve.engine.server.scopes import SCOPES
from recserve.engine.server.security.keys import create_key, read_keys, revoke_key, write_keys
from tests.engine.server.security.certificates import Authority, KeyPair

ISSUER = "https://login.test/"
EVERYTHING = sorted(SCOPES)
NOW = datetime.datetime.now(datetime.UTC)


class Tokens:
    """An identity provider with one Ed25519 key, and its JWKS file."""

    def __init__(self, folder: Path) -> None:
        self.key = Ed25519PrivateKey.generate()
        self.jwk = {**jwt.algorithms.OKPAlgorithm.to_jwk(self.key.public_key(), as_dict=True), "kid": "k1"}
        self.jwks = folder / "jwks.json"
        self.write([self.jwk])

    def write(self, keys: list[dict[str, Any]]) -> None:
        self.jwks.write_text(json.dumps({"keys": keys}))

    def make(
        self, *, key: Any = None, algorithm: str = "EdDSA", kid: str | None = "k1", **claims: Any
    ) -> str:
        """Signs the usual claims; a claim that is None is left out."""
        usual = {"iss": ISSUER, "aud": "recserve", "sub": "backend", "exp": int(NOW.timestamp()) + 3600}
        given = {name: value for name, value in {**usual, **claims}.items() if value is not None}
        headers = {"kid": kid} if kid is not None else {}
        return jwt.encode(given, key or self.key, algorithm=algorithm, headers=headers)


@dataclass(frozen=True)
class Estate:
    """All that the tests show to servers; ``policy`` grants the certificate of web.test everything."""

    folder: Path
    authority: Authority
    server: KeyPair
    web: KeyPair
    tokens: Tokens
    policy: Path
    keys: Path
    new_key: Callable[..., str]


@pytest.fixture(scope="module")
def estate(tmp_path_factory: pytest.TempPathFactory) -> Estate:
    folder = tmp_path_factory.mktemp("estate")
    authority = Authority(folder)
    keys = folder / "keys.toml"

    def new_key(*scopes: str, expired: bool = False, revoked: bool = False) -> str:
        key, text = create_key(keys, "test", list(scopes), 1)
        if expired:
            listed = read_keys(keys)
            write_keys(keys, {**listed, key.id: replace(key, expires=NOW - datetime.timedelta(days=1))})
        if revoked:
            revoke_key(keys, key.id)
        return text

    new_key("health")
    tokens = Tokens(folder)
    policy = folder / "policy.toml"
    policy.write_text(
        f"""
        [keys]
        file = "keys.toml"
        [jwt]
        issuer = "{ISSUER}"
        audience = "recserve"
        jwks = "jwks.json"
        [certificates]
        "uri:spiffe://test/web" = {EVERYTHING}
        "dns:metrics.test" = ["metrics:read"]
        """
    )
    web = authority.issue("web.test", uri="spiffe://test/web")
    return Estate(folder, authority, authority.issue("server.test"), web, tokens, policy, keys, new_key)
