"""What the file of keys, tokens and the policy accept, on their own."""

import datetime
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from recserve.engine.credentials import Credentials
from recserve.engine.server.security.files import CHECK_SECONDS
from recserve.engine.server.security.keys import KEY_PREFIX, KeyRing, create_key, read_keys, revoke_key
from recserve.engine.server.security.policy import read_policy
from recserve.engine.server.security.principals import NotAccepted
from recserve.engine.server.security.tokens import JwtConfig, TokenVerifier
from recserve.errors import ConfigError
from tests.engine.server.security.conftest import ISSUER, NOW, Tokens

PAST, FUTURE = int(NOW.timestamp()) - 3600, int(NOW.timestamp()) + 3600


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_key_is_good_until_it_is_revoked(tmp_path: Path) -> None:
    file, clock = tmp_path / "keys.toml", Clock()
    key, text = create_key(file, "web", ["recommend"], 1)
    ring = KeyRing(file, clock=clock)
    principal = ring.principal(text)
    assert (str(principal), principal.scopes) == ("key:web", {"recommend"})
    revoke_key(file, key.id)
    assert CHECK_SECONDS <= 5
    clock.now += CHECK_SECONDS
    with pytest.raises(NotAccepted, match="revoked"):
        ring.principal(text)
    _, other = create_key(file, "other", ["health"], 1)
    clock.now += CHECK_SECONDS
    assert ring.principal(other).name == "key:other"


def test_the_file_holds_neither_keys_nor_readers(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    key, text = create_key(file, "web", ["recommend"], 30)
    content = file.read_text()
    assert text.rpartition("_")[2] not in content
    assert len(text) == len(KEY_PREFIX) + 8 + 1 + 43
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert read_keys(file) == {key.id: key}
    assert key.state(key.expires - datetime.timedelta(seconds=1)) == "good"
    assert key.state(key.expires) == "expired"
    file.chmod(0o644)
    with pytest.raises(ConfigError, match=r"mode 0644 .*chmod 600"):
        read_keys(file)


def test_a_broken_key_file_leaves_the_keys_as_they_were(tmp_path: Path) -> None:
    file, clock = tmp_path / "keys.toml", Clock()
    _, text = create_key(file, "web", ["recommend"], 1)
    ring = KeyRing(file, clock=clock)
    file.write_text("[keys")
    clock.now += CHECK_SECONDS
    assert ring.principal(text).name == "key:web"
    with pytest.raises(ConfigError, match="not TOML"):
        KeyRing(file)


@given(st.text(max_size=80))
def test_no_other_text_is_a_key(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    file = tmp_path_factory.getbasetemp() / f"keys-{os.getpid()}.toml"
    if not file.exists():
        create_key(file, "web", ["recommend"], 1)
    ring = KeyRing(file)
    id_ = next(iter(read_keys(file)))
    for shown in (KEY_PREFIX + text, f"{KEY_PREFIX}{id_}_{text}"):
        with pytest.raises(NotAccepted, match="no such API key"):
            ring.principal(shown)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[other]\n", "other tables"),
        ('[keys.12345678]\nname = "x"\n', "incomplete or unknown"),
        ('[keys.short]\nname = "x"\nscopes = []\nsha256 = ""\ncreated = 1\nexpires = 1\n', "8 hexadecimal"),
    ],
)
def test_a_malformed_key_file_is_refused(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(content)
    file.chmod(0o600)
    with pytest.raises(ConfigError, match=words):
        read_keys(file)


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    return Tokens(tmp_path)


def verifier(tokens: Tokens, **settings: Any) -> TokenVerifier:
    return TokenVerifier(JwtConfig(issuer=ISSUER, audience="recserve", jwks=tokens.jwks), **settings)


def test_a_token_of_the_issuer_is_accepted_and_remembered(tokens: Tokens) -> None:
    checked = verifier(tokens)
    token = tokens.make(scope="recommend items:read", nbf=PAST)
    principal = checked.principal(token)
    assert (principal.name, principal.scopes) == ("jwt:backend", {"recommend", "items:read"})
    assert checked.principal(token) is principal


@pytest.mark.parametrize(
    ("claims", "words"),
    [
        ({"exp": PAST}, "ExpiredSignature"),
        ({"exp": None}, "MissingRequiredClaim"),
        ({"nbf": FUTURE}, "ImmatureSignature"),
        ({"iss": "https://other/"}, "InvalidIssuer"),
        ({"iss": None}, "MissingRequiredClaim"),
        ({"aud": "another"}, "InvalidAudience"),
        ({"aud": None}, "MissingRequiredClaim"),
        ({"sub": None}, "MissingRequiredClaim"),
        ({"scope": 3}, "malformed scope"),
        ({"kid": "k2"}, "unknown key"),
    ],
)
def test_a_token_that_is_not_for_us_is_refused(tokens: Tokens, claims: dict[str, Any], words: str) -> None:
    checked = verifier(tokens)
    for _ in range(2):
        with pytest.raises(NotAccepted, match=words):
            checked.principal(tokens.make(**claims))


@given(st.text(max_size=200), st.booleans())
def test_garbage_is_never_a_token(tmp_path_factory: pytest.TempPathFactory, text: str, is_tail: bool) -> None:
    tokens = Tokens(tmp_path_factory.getbasetemp())
    good = tokens.make()
    shown = good[: len(good) // 2] + text if is_tail else text
    with pytest.raises(NotAccepted):
        verifier(tokens).principal(shown)


def test_a_deeply_nested_header_is_refused(tokens: Tokens) -> None:
    import base64

    header = base64.urlsafe_b64encode(b"[" * 5000).decode().rstrip("=")
    with pytest.raises(NotAccepted):
        verifier(tokens).principal(f"{header}.e30.AAAA")
    with pytest.raises(NotAccepted, match="too long"):
        verifier(tokens).principal("x" * 9000)


@pytest.mark.parametrize("algorithm", ["ES256", "RS256"])
def test_other_algorithms_of_the_list(tokens: Tokens, algorithm: str) -> None:
    if algorithm == "ES256":
        key: Any = ec.generate_private_key(ec.SECP256R1())
        jwk = ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    else:
        key = rsa.generate_private_key(65537, 2048)
        jwk = RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
    tokens.write([tokens.jwk, {**jwk, "kid": "k2"}])
    checked = verifier(tokens)
    assert checked.principal(tokens.make(key=key, algorithm=algorithm, kid="k2")).name == "jwt:backend"
    # The algorithm is that of the key, whatever the token says.
    with pytest.raises(NotAccepted, match="refused"):
        checked.principal(tokens.make(key=key, algorithm=algorithm, kid="k1"))


def test_a_key_that_leaves_the_jwks_takes_its_tokens_along(tokens: Tokens) -> None:
    clock = Clock()
    checked = verifier(tokens, clock=clock)
    token = tokens.make()
    assert checked.principal(token)
    tokens.write([{**tokens.jwk, "kid": "new"}])
    clock.now += CHECK_SECONDS
    with pytest.raises(NotAccepted, match="unknown key"):
        checked.principal(token)


def _private(tokens: Tokens) -> dict[str, Any]:
    return {**tokens.jwk, "d": "AAAA"}


def _shared(tokens: Tokens) -> dict[str, Any]:
    return {"kty": "oct", "k": "AAAA", "kid": "s"}


def _short(tokens: Tokens) -> dict[str, Any]:
    return {
        **RSAAlgorithm.to_jwk(rsa.generate_private_key(65537, 1024).public_key(), as_dict=True),
        "kid": "r",
    }


def _other_curve(tokens: Tokens) -> dict[str, Any]:
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    return {**ECAlgorithm.to_jwk(key, as_dict=True), "kid": "e"}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_private, "private or shared key"),
        (_shared, "private or shared key"),
        (_short, "1024 bits"),
        (_other_curve, "ES384"),
    ],
)
def test_keys_that_must_not_verify_refuse_to_start(
    tokens: Tokens, make: Callable[[Tokens], dict[str, Any]], words: str
) -> None:
    tokens.write([make(tokens)])
    with pytest.raises(ConfigError, match=words):
        verifier(tokens)


@pytest.mark.parametrize("content", ["", "[]", '{"keys": 3}', '{"keys": [3]}', '{"keys": []}'])
def test_a_malformed_jwks_file_refuses_to_start(tokens: Tokens, content: str) -> None:
    tokens.jwks.write_text(content)
    with pytest.raises(ConfigError, match="JWKS file"):
        verifier(tokens)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("x", "not TOML"),
        ("publik = []", "Did you mean 'public'"),
        ('public = ["model:admin"]', "no admin scope"),
        ('public = ["recomend"]', "Did you mean 'recommend'"),
        ("public = 3", "a list of scopes"),
        ("keys = 3", "expected a table"),
        ("[keys]\nfile = 3", "expected a path"),
        ('[jwt]\nissuer = "x"\njwks = "y"', r"jwt\.audience is missing"),
        ('[jwt]\nissuer = "x"\naudience = "y"\njwks = "z"\nleeway_seconds = 61', "0 to 60"),
        ('[certificates]\n"web" = []', "uri:, dns:, subject:"),
    ],
)
def test_a_wrong_policy_refuses_to_start(tmp_path: Path, content: str, words: str) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(content)
    with pytest.raises(ConfigError, match=words):
        read_policy(policy)


def test_a_policy_that_others_may_change_refuses_to_start(tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text("")
    policy.chmod(0o666)
    with pytest.raises(ConfigError, match=r"mode 0666 .*chmod go-w"):
        read_policy(policy)
    policy.chmod(0o644)
    assert read_policy(policy).public == frozenset()


def test_a_client_keeps_its_token_to_itself(tmp_path: Path) -> None:
    credentials = Credentials(token="rsk_secret")
    assert "secret" not in repr(credentials)
    credentials.check("127.0.0.1:1")
    credentials.check("unix:/x")
    with pytest.raises(ConfigError, match="without TLS") as caught:
        credentials.check("shop.example:443")
    assert "secret" not in str(caught.value)
    with pytest.raises(ConfigError, match="half a pair"):
        Credentials(ca="system", certificate=tmp_path)
    with pytest.raises(ConfigError, match="given without ca"):
        Credentials(server_name="x")
    assert json.dumps(credentials.metadata()) == '[["authorization", "Bearer rsk_secret"]]'
