"""The policy file: who is who, and what each may do. What it does not grant is refused.

public = ["health"]                      # scopes that need no credentials; none unless given

[keys]
file = "keys.toml"                       # of `recserve keys`; paths start at the policy's folder

[jwt]
issuer = "https://login.example.com/"
audience = "recserve"
jwks = "jwks.json"
leeway_seconds = 30                      # at most 60

[certificates]                           # of clients, with mutual TLS
"uri:spiffe://example.com/web" = ["recommend", "items:read"]
"dns:ops.example.com" = ["model:admin", "reflection"]
"subject:CN=batch,O=Example" = ["recommend"]

[limits]                                 # of callers, as the audit log names them; "*": of each other one
"key:web" = { per_second = 500, burst = 1000, in_flight = 100 }
"*" = { per_second = 20, burst = 40 }
"""

import dataclasses
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from recserve.engine.server.scopes import ADMIN_SCOPES
from recserve.engine.server.security.caller_limits import CallerLimit
from recserve.engine.server.security.keys import KeyRing
from recserve.engine.server.security.principals import NotAccepted, Principal, check_scopes
from recserve.engine.server.security.tokens import JwtConfig, TokenVerifier
from recserve.errors import ConfigError, nearest
from recserve.permissions import check_trusted, read_file

IDENTITY_KINDS = ("uri:", "dns:", "subject:")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One state of the policy file."""

    public: frozenset[str]
    keys: KeyRing | None
    tokens: TokenVerifier | None
    certificates: dict[str, frozenset[str]]
    limits: dict[str, CallerLimit] = dataclasses.field(default_factory=dict)

    def of_certificate(self, identities: Iterable[str]) -> Principal:
        """Returns who a verified certificate is: the scopes of all its names that the policy has."""
        named = [identity for identity in identities if identity in self.certificates]
        if not named:
            raise NotAccepted("certificate without an entry")
        scopes = frozenset[str]().union(*(self.certificates[identity] for identity in named))
        return Principal(named[0], scopes)


def read_policy(path: Path, **reloading: Any) -> Policy:
    """Reads a policy file; raises :class:`ConfigError` naming the key that is wrong."""
    check_trusted(path, "policy")
    try:
        content = tomllib.loads(read_file(path, "policy").decode())
    except ValueError as error:
        raise ConfigError(f"policy {path}", found="not TOML", expected="TOML") from error
    _check_keys("policy", content, ("public", "keys", "jwt", "certificates", "limits"))
    public = check_scopes("policy public", content.get("public", []))
    if public & ADMIN_SCOPES:
        raise ConfigError("policy public", found=sorted(public & ADMIN_SCOPES), expected="no admin scope")
    names = ("keys", "jwt", "certificates", "limits")
    keys, jwt, certificates, limits = (_table(content, name) for name in names)
    _check_keys("policy keys", keys, ("file",))
    fields = [field.name for field in dataclasses.fields(JwtConfig)]
    _check_keys("policy jwt", jwt, fields)
    for name in fields[:3] if jwt else ():
        if name not in jwt:
            raise ConfigError(f"policy jwt.{name}", found="missing", expected="a text")
    return Policy(
        public=public,
        keys=KeyRing(_path(path, "keys.file", keys.get("file")), **reloading) if keys else None,
        tokens=TokenVerifier(JwtConfig(**{**jwt, "jwks": _path(path, "jwt.jwks", jwt["jwks"])}), **reloading)
        if jwt
        else None,
        certificates={_identity(name): check_scopes(name, given) for name, given in certificates.items()},
        limits={name: _limit(name, given) for name, given in limits.items()},
    )


def _table(content: dict[str, Any], name: str) -> dict[str, Any]:
    table = content.get(name, {})
    if not isinstance(table, dict):
        raise ConfigError(f"policy {name}", found=table, expected="a table")
    return table


def _check_keys(where: str, table: dict[str, Any], known: Iterable[str]) -> None:
    for key in table:
        if key not in known:
            cure = nearest(key, known) or f"Known: {', '.join(known)}."
            raise ConfigError(f"{where} key {key}", found="unknown", expected="a known key", cure=cure)


def _path(policy: Path, name: str, value: object) -> Path:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"policy {name}", found=value, expected="a path")
    return policy.parent / value


def _limit(name: str, given: object) -> CallerLimit:
    if not isinstance(given, dict):
        raise ConfigError(f"policy limits {name}", found=given, expected="a table")
    _check_keys(f"policy limits {name}", given, [field.name for field in dataclasses.fields(CallerLimit)])
    return CallerLimit(**given)


def _identity(name: str) -> str:
    if not name.startswith(IDENTITY_KINDS):
        raise ConfigError(
            "policy certificates", found=name, expected=f"a name after {', '.join(IDENTITY_KINDS)}"
        )
    return name
