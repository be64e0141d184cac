"""API keys: 256 random bits each, of which the file holds the SHA-256.

A key reads ``rsk_<id>_<secret>``. The secret is random, not chosen: a fast hash is enough. The file is TOML
and belongs to ``recserve keys``; a server sees a change within CHECK_SECONDS (files.py).
"""

import datetime
import fcntl
import hashlib
import hmac
import os
import re
import secrets
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recserve.engine.server.security.files import Reloaded
from recserve.engine.server.security.principals import NotAccepted, Principal, check_scopes
from recserve.errors import ConfigError
from recserve.permissions import check_secret, read_file

KEY_PREFIX = "rsk_"
SECRET_BYTES = 32
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
ID = re.compile(r"[0-9a-f]{8}")
SHA256 = re.compile(r"[0-9a-f]{64}")
FIELDS = frozenset({"name", "scopes", "sha256", "created", "expires", "revoked"})
# Compared with when there is no such key, so that its absence takes as long as a wrong secret.
NO_SHA256 = "0" * 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """One key as the file has it; times are UTC, ``revoked`` None while it is good."""

    id: str
    name: str
    scopes: frozenset[str]
    sha256: str
    created: datetime.datetime
    expires: datetime.datetime
    revoked: datetime.datetime | None = None

    def __post_init__(self) -> None:
        where = f"key {self.id}"
        if not ID.fullmatch(self.id):
            raise ConfigError("key id", found=self.id, expected="8 hexadecimal digits")
        if not isinstance(self.name, str) or not NAME.fullmatch(self.name):
            raise ConfigError(f"name of {where}", found=self.name, expected="1 to 64 of A-Z a-z 0-9 . _ -")
        if not isinstance(self.sha256, str) or not SHA256.fullmatch(self.sha256):
            raise ConfigError(f"sha256 of {where}", found="malformed", expected="64 hexadecimal digits")
        for field in ("created", "expires", "revoked"):
            time = getattr(self, field)
            if time is None and field == "revoked":
                continue
            if not isinstance(time, datetime.datetime) or time.tzinfo is None:
                raise ConfigError(f"{field} of {where}", found=time, expected="a time with its zone")

    def state(self, now: datetime.datetime) -> str:
        """Returns "good", "revoked" or "expired"."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if now >= self.expires else "good"


class KeyRing:
    """The keys that a server accepts, as the file has them now."""

    def __init__(self, path: Path, **reloading: Any) -> None:
        self._keys = Reloaded([path], lambda: read_keys(path), **reloading)

    def principal(self, text: str) -> Principal:
        """Returns whose key ``text`` is; raises :class:`NotAccepted`."""
        key = self._keys.get().get(text[len(KEY_PREFIX) :].partition("_")[0])
        same = hmac.compare_digest(_sha256(text), key.sha256 if key else NO_SHA256)
        if key is None or not same:
            raise NotAccepted("no such API key")
        state = key.state(_now())
        if state != "good":
            raise NotAccepted(f"API key {key.id} is {state}")
        return Principal(f"key:{key.name}", key.scopes)


def read_keys(path: Path) -> dict[str, ApiKey]:
    """Returns the keys of a file by id; raises :class:`ConfigError`."""
    check_secret(path, "key file")
    try:
        content = tomllib.loads(read_file(path, "key file").decode())
    except ValueError as error:  # TOML and UTF-8 alike
        raise ConfigError(
            f"key file {path}", found="not TOML", expected="what recserve keys wrote"
        ) from error
    tables = content.pop("keys", {})
    if content or not isinstance(tables, dict):
        raise ConfigError(f"key file {path}", found="other tables", expected="[keys.ID] only")
    return {id_: _key(id_, table) for id_, table in tables.items()}


def create_key(path: Path, name: str, scopes: list[str], days: int) -> tuple[ApiKey, str]:
    """Adds a key to the file (made when it is absent); returns it and its text, which nothing else keeps."""
    now = _now().replace(microsecond=0)
    with _locked(path):
        keys = read_keys(path) if path.exists() else {}
        id_ = next(id_ for id_ in iter(lambda: secrets.token_hex(4), "") if id_ not in keys)
        text = f"{KEY_PREFIX}{id_}_{secrets.token_urlsafe(SECRET_BYTES)}"
        keys[id_] = ApiKey(
            id=id_,
            name=name,
            scopes=check_scopes("--scope", scopes),
            sha256=_sha256(text),
            created=now,
            expires=now + datetime.timedelta(days=days),
        )
        write_keys(path, keys)
    return keys[id_], text


def revoke_key(path: Path, id_: str) -> ApiKey:
    """Marks a key as revoked; raises :class:`ConfigError` when there is none of that id."""
    with _locked(path):
        keys = read_keys(path)
        if id_ not in keys:
            raise ConfigError("key id", found=id_, expected="one that recserve keys list shows")
        if keys[id_].revoked is None:
            keys[id_] = replace(keys[id_], revoked=_now().replace(microsecond=0))
            write_keys(path, keys)
    return keys[id_]


def _key(id_: str, table: Any) -> ApiKey:
    if not isinstance(table, dict) or not FIELDS - {"revoked"} <= table.keys() <= FIELDS:
        raise ConfigError(f"key {id_}", found="incomplete or unknown", expected=", ".join(sorted(FIELDS)))
    return ApiKey(id=id_, **{**table, "scopes": check_scopes(f"scopes of key {id_}", table["scopes"])})


def write_keys(path: Path, keys: Mapping[str, ApiKey]) -> None:
    """Replaces the file whole. What is written was checked: no field needs quoting."""
    lines = ["# Written by `recserve keys`; holds hashes, not keys."]
    for key in keys.values():
        scopes = ", ".join(f'"{scope}"' for scope in sorted(key.scopes))
        lines += ["", f"[keys.{key.id}]", f'name = "{key.name}"', f"scopes = [{scopes}]"]
        lines += [f'sha256 = "{key.sha256}"', f"created = {key.created.isoformat()}"]
        lines += [f"expires = {key.expires.isoformat()}"]
        if key.revoked is not None:
            lines.append(f"revoked = {key.revoked.isoformat()}")
    temporary = path.with_name(f".{path.name}.partial")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write("\n".join(lines) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keeps two commands from writing over each other."""
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
