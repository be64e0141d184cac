"""Every user's own key, closed with the master key, in a file of its own; who deletes it shreds the user.

The file is separate from the log, so that a copy of the log, however old, does not open what was erased
since. ``secure_delete`` and a truncated write-ahead log leave no key bytes in it; backups of this file must
be short-lived.
"""

import hmac
import os
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recserve.engine.state.database import open_database, storage_errors
from recserve.engine.state.master import MasterKeys
from recserve.errors import ConfigError, DataError

USER_KEY_BYTES = 16
NONCE_BYTES = 12
KEY_BYTES = 32
# Ciphers of users that wrote lately; a new one costs a row and two decryptions.
MAX_CIPHERS = 100_000
REWRAP_AT_ONCE = 500
SCHEMA = """
CREATE TABLE IF NOT EXISTS pseudonym (id INTEGER PRIMARY KEY CHECK (id = 1), master TEXT, wrapped BLOB)
    STRICT;
CREATE TABLE IF NOT EXISTS keys (user_key BLOB PRIMARY KEY, master TEXT NOT NULL, wrapped BLOB NOT NULL)
    STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS erased (user_key BLOB PRIMARY KEY, time INTEGER NOT NULL, is_done INTEGER NOT NULL)
    STRICT, WITHOUT ROWID;
"""
PSEUDONYM_NAME = b"recserve pseudonym"
USER_NAME = b"recserve user"
ID_NAME = b"recserve event id"


class KeyStore:
    """Pseudonyms and ciphers of users.

    One thread (the log's writer) calls what changes it; :meth:`user_key` and :meth:`is_erased` may be called
    by any.
    """

    def __init__(
        self, path: str | Path, masters: MasterKeys, *, durability: str, read_only: bool = False
    ) -> None:
        """``path``: a file or ":memory:". Raises :class:`ConfigError` when the master key is another one."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self._cipher, self._invalid = AESGCM, InvalidTag
        self._path = path
        self._database = open_database(path, SCHEMA, durability=durability, read_only=read_only)
        if not read_only:
            self._database.execute("PRAGMA secure_delete=ON")
        self.use_masters(masters)
        # The secret behind the pseudonyms stays the same when the master key is rotated.
        secret = self._open_pseudonym_secret(read_only)
        self._user_secret = hmac.digest(secret, USER_NAME, "sha256")
        self._id_secret = hmac.digest(secret, ID_NAME, "sha256")
        self._ciphers: OrderedDict[bytes, Any] = OrderedDict()
        self._pending: list[tuple[bytes, str, bytes]] = []
        self.erased: set[bytes] = {
            user_key for (user_key,) in self._database.execute("SELECT user_key FROM erased")
        }

    def user_key(self, user_id: str) -> bytes:
        """Returns the pseudonym of a user, 16 bytes: HMAC-SHA-256 under a secret of this store."""
        data = user_id.encode("utf-8", "surrogatepass")
        return hmac.digest(self._user_secret, data, "sha256")[:USER_KEY_BYTES]

    def event_key(self, event_id: str) -> bytes:
        """Returns what stands for an event id in the log, 16 bytes."""
        data = event_id.encode("utf-8", "surrogatepass")
        return hmac.digest(self._id_secret, data, "sha256")[:USER_KEY_BYTES]

    def is_erased(self, user_key: bytes) -> bool:
        """Returns whether the user was erased: nothing of them is kept any more."""
        return user_key in self.erased

    def seal(self, user_key: bytes, event_key: bytes, received: int, plain: bytes, nonce: bytes) -> bytes:
        """Encrypts an event's body; only together with the other fields of its row it opens again."""
        cipher = self._ciphers.get(user_key) or self._load(user_key) or self._create(user_key)
        return nonce + bytes(cipher.encrypt(nonce, plain, _bound(user_key, event_key, received)))

    def open(self, user_key: bytes, event_key: bytes, received: int, sealed: bytes) -> bytes | None:
        """Decrypts what :meth:`seal` returned; None when the user's key is gone.

        Raises :class:`DataError` when any of the fields is not as it was written.
        """
        cipher = self._ciphers.get(user_key) or self._load(user_key)
        if cipher is None:
            return None
        try:
            plain: bytes = cipher.decrypt(
                sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], _bound(user_key, event_key, received)
            )
        except (self._invalid, ValueError) as error:
            raise DataError("event in the log", found="changed", expected="as it was written") from error
        return plain

    def commit(self) -> None:
        """Makes the keys of new users durable: before the events that they close."""
        if not self._pending:
            return
        with storage_errors(), self._database:
            self._database.executemany("INSERT INTO keys VALUES (?, ?, ?)", self._pending)
        self._pending.clear()

    def discard(self) -> None:
        """Forgets keys that were made and not committed."""
        for user_key, _, _ in self._pending:
            self._ciphers.pop(user_key, None)
        self._pending.clear()

    def erase(self, user_key: bytes) -> None:
        """Destroys a user's key for good; durable when it returns."""
        with storage_errors(), self._database:
            self._database.execute("DELETE FROM keys WHERE user_key = ?", (user_key,))
            self._database.execute(
                "INSERT INTO erased VALUES (?, ?, 0) ON CONFLICT DO NOTHING", (user_key, int(time.time()))
            )
        self._ciphers.pop(user_key, None)
        self.erased.add(user_key)
        with storage_errors():
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def unfinished_erasures(self) -> list[bytes]:
        """Returns erased users whose rows may still be in the log."""
        return [key for (key,) in self._database.execute("SELECT user_key FROM erased WHERE NOT is_done")]

    def finish_erasure(self, user_key: bytes) -> None:
        """Notes that the user's rows are gone."""
        with storage_errors():
            self._database.execute("UPDATE erased SET is_done = 1 WHERE user_key = ?", (user_key,))

    def use_masters(self, masters: MasterKeys) -> None:
        """Takes other master keys from now on; :meth:`rewrap` then moves every user to the current one."""
        self.masters = masters
        self._masters = {key_id: self._cipher(key) for key_id, key in masters.keys.items()}

    def rewrap(self) -> Iterator[int]:
        """Closes what older master keys closed with the current one; yields after each few hundred users.

        A process that ends in between leaves all of them readable, by one key or the other.
        """
        current = self.masters.current
        row = self._database.execute("SELECT master, wrapped FROM pseudonym").fetchone()
        if row[0] != current:
            secret = self._unwrap(PSEUDONYM_NAME, *row)
            self._database.execute(
                "UPDATE pseudonym SET master = ?, wrapped = ?", self._wrap(PSEUDONYM_NAME, secret)
            )
        n_done = 0
        while rows := self._database.execute(
            "SELECT user_key, master, wrapped FROM keys WHERE master != ? LIMIT ?", (current, REWRAP_AT_ONCE)
        ).fetchall():
            with self._database:
                for user_key, master, wrapped in rows:
                    again = self._wrap(user_key, self._unwrap(user_key, master, wrapped))
                    self._database.execute(
                        "UPDATE keys SET master = ?, wrapped = ? WHERE user_key = ?", (*again, user_key)
                    )
            n_done += len(rows)
            yield n_done
        self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def close(self) -> None:
        """Closes the file."""
        self._database.close()

    def _load(self, user_key: bytes) -> Any:
        row = self._database.execute(
            "SELECT master, wrapped FROM keys WHERE user_key = ?", (user_key,)
        ).fetchone()
        return None if row is None else self._keep(user_key, self._unwrap(user_key, *row))

    def _create(self, user_key: bytes) -> Any:
        key = os.urandom(KEY_BYTES)
        self._pending.append((user_key, *self._wrap(user_key, key)))
        return self._keep(user_key, key)

    def _keep(self, user_key: bytes, key: bytes) -> Any:
        cipher = self._ciphers[user_key] = self._cipher(key)
        # A key that is not committed yet exists here only.
        while len(self._ciphers) > MAX_CIPHERS and not self._pending:
            self._ciphers.popitem(last=False)
        return cipher

    def _wrap(self, name: bytes, key: bytes) -> tuple[str, bytes]:
        nonce = os.urandom(NONCE_BYTES)
        current = self.masters.current
        return current, nonce + bytes(self._masters[current].encrypt(nonce, key, name))

    def _unwrap(self, name: bytes, master: str, wrapped: bytes) -> bytes:
        if master not in self._masters:
            raise ConfigError(
                "state.key_file",
                found=f"without master key {master}",
                expected="every key that user keys were closed with",
                cure="Add its line again.",
            )
        try:
            key: bytes = self._masters[master].decrypt(wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], name)
        except self._invalid as error:
            raise ConfigError(
                f"key in {self._path}",
                found="not openable",
                expected=f"closed with master key {master}",
                cure="The master key is another one of the same name, or the file was changed.",
            ) from error
        return key

    def _open_pseudonym_secret(self, read_only: bool) -> bytes:
        row = self._database.execute("SELECT master, wrapped FROM pseudonym").fetchone()
        if row is not None:
            return self._unwrap(PSEUDONYM_NAME, *row)
        if read_only:
            raise ConfigError(f"keys {self._path}", found="empty", expected="the keys of a log")
        secret = os.urandom(KEY_BYTES)
        self._database.execute("INSERT INTO pseudonym VALUES (1, ?, ?)", self._wrap(PSEUDONYM_NAME, secret))
        return secret


def _bound(user_key: bytes, event_key: bytes, received: int) -> bytes:
    return b"".join((b"recserve event 1", user_key, event_key, received.to_bytes(8, "big", signed=True)))
