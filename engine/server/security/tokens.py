"""JSON Web Tokens of an identity provider: verified by its public keys, a local JWKS file.

EdDSA, ES256 and RS256 only: never "none", never a shared secret. The algorithm is the key's own, so a token
cannot choose how it is checked.
"""

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recserve.engine.server.security.files import Reloaded
from recserve.engine.server.security.principals import NotAccepted, Principal
from recserve.errors import ConfigError, shorten
from recserve.permissions import check_trusted, read_file

ALGORITHMS = ("EdDSA", "ES256", "RS256")
REQUIRED_CLAIMS = ("exp", "iss", "aud", "sub")
MAX_LEEWAY_SECONDS = 60
MIN_RSA_BITS = 2048
MAX_TOKEN_CHARACTERS = 8192
# A caller sends the same token for minutes and a check takes 0.15 ms; full, the memory starts anew.
MAX_REMEMBERED = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class JwtConfig:
    """Whose tokens are accepted; ``jwks`` is a file of public keys."""

    issuer: str
    audience: str
    jwks: Path
    leeway_seconds: int = 30

    def __post_init__(self) -> None:
        for name in ("issuer", "audience"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise ConfigError(f"jwt.{name}", found=value, expected="a text")
        leeway = self.leeway_seconds
        if type(leeway) is not int or not 0 <= leeway <= MAX_LEEWAY_SECONDS:
            raise ConfigError(
                "jwt.leeway_seconds", found=leeway, expected=f"0 to {MAX_LEEWAY_SECONDS} seconds"
            )


class TokenVerifier:
    """Checks tokens by the keys that the file has now."""

    def __init__(self, config: JwtConfig, **reloading: Any) -> None:
        self._jwt = _import_jwt()
        self._config = config
        self._keys = Reloaded([config.jwks], self._read_keys, **reloading)

    def principal(self, token: str) -> Principal:
        """Returns whose token it is; raises :class:`NotAccepted`."""
        if len(token) > MAX_TOKEN_CHARACTERS:
            raise NotAccepted("token too long")
        keys = self._keys.get()
        digest = hashlib.sha256(token.encode()).digest()
        known = keys.remembered.get(digest)
        if known is not None and time.time() < known[1]:
            return known[0]
        claims = self._verify(token, keys)
        principal = Principal(f"jwt:{shorten(claims['sub'])}", _scopes(claims))
        if len(keys.remembered) >= MAX_REMEMBERED:
            keys.remembered.clear()
        keys.remembered[digest] = (principal, int(claims["exp"]) + self._config.leeway_seconds)
        return principal

    def _verify(self, token: str, keys: "_Keys") -> dict[str, Any]:
        jwt = self._jwt
        try:
            key = keys.find(jwt.get_unverified_header(token).get("kid"))
            return dict(
                jwt.decode(
                    token,
                    key.key,
                    algorithms=[key.algorithm_name],
                    issuer=self._config.issuer,
                    audience=self._config.audience,
                    leeway=self._config.leeway_seconds,
                    options={"require": list(REQUIRED_CLAIMS)},
                )
            )
        except (jwt.InvalidTokenError, RecursionError, OverflowError) as error:
            # Its class names what is wrong; its text may quote the token.
            raise NotAccepted(f"token refused: {type(error).__name__}") from None

    def _read_keys(self) -> "_Keys":
        path = self._config.jwks
        check_trusted(path, "JWKS file")
        try:
            listed = json.loads(read_file(path, "JWKS file"))["keys"]
            entries = [entry for entry in listed if entry.get("use", "sig") == "sig"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"JWKS file {path}", found="malformed", expected='{"keys": […]}') from error
        keys = {str(entry.get("kid", "")): self._read_key(entry) for entry in entries}
        if not keys or len(keys) < len(entries) or (len(keys) > 1 and "" in keys):
            raise ConfigError(
                f"JWKS file {path}", found=f"{len(entries)} keys", expected="keys of distinct kid"
            )
        return _Keys(keys)

    def _read_key(self, entry: dict[str, Any]) -> Any:
        name = f"key {entry.get('kid', '')!r} of {self._config.jwks}"
        if "d" in entry or entry.get("kty") == "oct":
            raise ConfigError(name, found="a private or shared key", expected="public keys only")
        try:
            key = self._jwt.PyJWK(entry)
        except self._jwt.PyJWTError as error:
            raise ConfigError(name, found="not usable", expected=", ".join(ALGORITHMS)) from error
        if key.algorithm_name not in ALGORITHMS:
            raise ConfigError(name, found=key.algorithm_name, expected=", ".join(ALGORITHMS))
        if key.algorithm_name == "RS256" and key.key.key_size < MIN_RSA_BITS:
            raise ConfigError(name, found=f"{key.key.key_size} bits", expected=f"{MIN_RSA_BITS} or more")
        return key


class _Keys:
    """The keys of one state of the file, and the tokens that they have verified."""

    def __init__(self, keys: dict[str, Any]) -> None:
        self._keys = keys
        # SHA-256 of a token → its principal and when it ends.
        self.remembered: dict[bytes, tuple[Principal, float]] = {}

    def find(self, kid: object) -> Any:
        if kid is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        key = self._keys.get(kid) if isinstance(kid, str) else None
        if key is None:
            raise NotAccepted("token of an unknown key")
        return key


def _scopes(claims: dict[str, Any]) -> frozenset[str]:
    """The claim ``scope`` of RFC 8693 (space-separated), or a list of texts."""
    scope = claims.get("scope", "")
    listed = scope.split() if isinstance(scope, str) else scope
    if not isinstance(listed, list) or not all(isinstance(entry, str) for entry in listed):
        raise NotAccepted("token with a malformed scope")
    return frozenset(listed)


def _import_jwt() -> Any:
    try:
        import cryptography  # noqa: F401 - without it PyJWT knows shared secrets only
        import jwt
    except ImportError as error:
        raise ConfigError(
            "policy [jwt]",
            found="without PyJWT and cryptography",
            expected="an installation with the extra [auth]",
            cure="Run: pip install 'recserve[auth]'",
        ) from error
    return jwt
