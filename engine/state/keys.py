"""Every user's own key, closed with the master key; who deletes it shreds the user.

Backups of the keys must be short-lived: with one of them, a copy of the log opens what was erased since.
"""

import hmac
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

from recserve.engine.state.master import MasterKeys
from recserve.engine.state.store import KeyRow, KeyTable
from recserve.errors import ConfigError, DataError

USER_KEY_BYTES = 16
NONCE_BYTES = 12
KEY_BYTES = 32
# Ciphers of users that wrote lately; a new one costs a row and two decryptions.
MAX_CIPHERS = 100_000
PSEUDONYM_NAME = b"recserve pseudonym"
USER_NAME = b"recserve user"
ID_NAME = b"recserve event id"


class Pseudonyms:
    """What stands for users and event ids: HMAC-SHA-256 under ``secret``. Safe to use from any thread."""

    def __init__(self, secret: bytes) -> None:
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.hmac import HMAC

        self.secret = secret
        self._user_mac, self._id_mac = (
            HMAC(hmac.digest(secret, name, "sha256"), SHA256()) for name in (USER_NAME, ID_NAME)
        )

    def user_key(self, user_id: str) -> bytes:
        """Returns the pseudonym of a user, 16 bytes."""
        return _mac(self._user_mac, user_id)

    def event_key(self, event_id: str) -> bytes:
        """Returns what stands for an event id in the log, 16 bytes."""
        return _mac(self._id_mac, event_id)


class KeyStore(Pseudonyms):
    """Pseudonyms and ciphers of users.

    One thread (the log's writer) calls what changes it; pseudonyms and :meth:`is_erased` are for any.
    """

    def __init__(
        self, table: KeyTable, read_masters: Callable[[], MasterKeys], *, read_only: bool = False
    ) -> None:
        """``read_masters`` is asked again when a key was closed with a newer master key.

        Raises :class:`ConfigError` when the master key is another one.
        """
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self._cipher, self._invalid = AESGCM, InvalidTag
        self._table = table
        self._read_masters = read_masters
        self.use_masters(read_masters())
        # The secret behind the pseudonyms stays the same when the master key is rotated.
        super().__init__(self._open_pseudonym_secret(read_only))
        self._ciphers: OrderedDict[bytes, Any] = OrderedDict()
        self._pending: list[KeyRow] = []
        self.erased: set[bytes] = set()
        self._last_erasure = 0
        self.new_erasures()

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

    def commit(self) -> bool:
        """Makes the keys of new users durable: before the events that they close.

        Returns False where another server was first, with a key or an erasure: what was sealed since the last
        commit must be sealed again.
        """
        if self._pending and not self._table.add(self._pending):
            self.discard()
            return False
        self._pending.clear()
        return True

    def discard(self) -> None:
        """Forgets keys that were made and not committed."""
        for user_key, _, _ in self._pending:
            self._ciphers.pop(user_key, None)
        self._pending.clear()

    def erase(self, user_key: bytes) -> None:
        """Destroys a user's key for good; durable when it returns."""
        self._table.erase(user_key)
        self._ciphers.pop(user_key, None)
        self.erased.add(user_key)

    def new_erasures(self) -> list[bytes]:
        """Returns the users that others have erased since the last call; from now on they are erased."""
        found = self._table.erasures(self._last_erasure)
        if not found:
            return []
        self._last_erasure = found[-1][0]
        users = [user_key for _, user_key in found if user_key not in self.erased]
        for user_key in users:
            self._ciphers.pop(user_key, None)
        self.erased.update(users)
        return users

    def unfinished_erasures(self) -> list[bytes]:
        """Returns erased users whose rows may still be in the log."""
        return self._table.unfinished_erasures()

    def finish_erasure(self, user_key: bytes) -> None:
        """Notes that the user's rows are gone."""
        self._table.finish_erasure(user_key)

    def use_masters(self, masters: MasterKeys) -> None:
        """Takes other master keys from now on; :meth:`rewrap` then moves every user to the current one."""
        self.masters = masters
        self._masters = {key_id: self._cipher(key) for key_id, key in masters.keys.items()}

    def rewrap(self) -> Iterator[int]:
        """Closes what older master keys closed with the current one; yields how many users after each step.

        A process that ends in between leaves all of them readable, by one key or the other.
        """
        n_done = 0
        for rows in self._table.closed_by_others(self.masters.current):
            self._table.replace([(row[0], *self._wrap(row[0], self._unwrap(*row))) for row in rows])
            n_done += sum(name != PSEUDONYM_NAME for name, _, _ in rows)
            yield n_done

    def close(self) -> None:
        """Closes the table."""
        self._table.close()

    def _load(self, user_key: bytes) -> Any:
        row = self._table.get(user_key)
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
            self.use_masters(self._read_masters())
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
                f"key in {self._table.name}",
                found="not openable",
                expected=f"closed with master key {master}",
                cure="The master key is another one of the same name, or the file was changed.",
            ) from error
        return key

    def _open_pseudonym_secret(self, read_only: bool) -> bytes:
        row = self._table.get(PSEUDONYM_NAME)
        if row is None and not read_only:
            self._table.add([(PSEUDONYM_NAME, *self._wrap(PSEUDONYM_NAME, os.urandom(KEY_BYTES)))])
            # Not what was just made: another server may have been first.
            row = self._table.get(PSEUDONYM_NAME)
        if row is None:
            raise ConfigError(f"keys {self._table.name}", found="empty", expected="the keys of a log")
        return self._unwrap(PSEUDONYM_NAME, *row)


def _mac(keyed: Any, text: str) -> bytes:
    try:
        data = text.encode()
    except UnicodeEncodeError:
        # Named only here: it takes a third of the time of the whole.
        data = text.encode("utf-8", "surrogatepass")
    # A copy of what has its key: a third of the time of a new one.
    mac = keyed.copy()
    mac.update(data)
    digest: bytes = mac.finalize()
    return digest[:USER_KEY_BYTES]


def _bound(user_key: bytes, event_key: bytes, received: int) -> bytes:
    return b"".join((b"recserve event 1", user_key, event_key, received.to_bytes(8, "big", signed=True)))
