"""Ed25519 keys in PEM files, as ``openssl genpkey -algorithm ed25519`` makes them too.

The id of a key is derived from it (the first 16 hex digits of the SHA-256 of its 32 public bytes), so that
no file can give one key the id of another.
"""

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from recserve.errors import ConfigError, InvalidRequest
from recserve.permissions import check_secret, check_trusted, read_file

ENVIRONMENT = "RECSERVE_SIGNING_KEY"
PUBLIC_SUFFIX = ".pub"
KEY_ID = re.compile(r"[0-9a-f]{16}")
PEM_BLOCK = re.compile(rb"-----BEGIN ([A-Z ]+)-----.*?-----END \1-----", re.DOTALL)


class SigningKey:
    """A private key. It is never shown; ``id`` is that of its public half."""

    def __init__(self, key: Any) -> None:
        """Use :func:`read_signing_key`."""
        self._key = key
        self.id = key_id(key.public_key())

    def sign(self, data: bytes) -> bytes:
        """Returns the signature of ``data``, 64 bytes."""
        return self._key.sign(data)  # type: ignore[no-any-return]


def create_key(file: Path) -> str:
    """Writes a fresh private key to ``file`` (mode 0600) and its public half to ``file.pub``; returns the id.

    Raises :class:`InvalidRequest` when one of them exists: a key is never overwritten.
    """
    ed25519, serialization = _cryptography()
    key = ed25519.Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    for path, data, mode in (
        (file.with_name(file.name + PUBLIC_SUFFIX), public, 0o644),
        (file, private, 0o600),
    ):
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        except FileExistsError as error:
            raise InvalidRequest(f"key file {path}", found="there already", expected="a new file") from error
        with open(descriptor, "wb") as out:
            out.write(data)
    return key_id(key.public_key())


def read_signing_key(file: Path | None = None) -> SigningKey:
    """Reads the private key in ``file``, without one that in the environment variable RECSERVE_SIGNING_KEY.

    Raises :class:`ConfigError` when there is none, or others may read the file.
    """
    ed25519, serialization = _cryptography()
    if file is not None:
        check_secret(file, "signing key")
        name, data = f"signing key {file}", read_file(file, "signing key")
    else:
        name, data = f"{ENVIRONMENT} in the environment", os.environ.get(ENVIRONMENT, "").encode()
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        # What is there may be a secret: neither it nor what the parser says of it is shown.
        raise ConfigError(
            name,
            found="something else" if data else "empty",
            expected="an Ed25519 private key in PEM, without a password",
            cure="Run: recserve bundle keygen FILE",
        )
    return SigningKey(key)


def read_trusted_keys(path: Path) -> Mapping[str, Any]:
    """Returns public keys by id: of a file of PEM blocks, or of a folder's files ``*.pub`` and ``*.pem``.

    Raises :class:`ConfigError` when there is none, one is not Ed25519, or others may change them.
    """
    check_trusted(path, "engine.trusted_keys")
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in (PUBLIC_SUFFIX, ".pem"))
    keys = {}
    for file in files:
        check_trusted(file, "trusted key")
        for key in _public_keys(file):
            keys[key_id(key)] = key
    if not keys:
        raise ConfigError(
            f"engine.trusted_keys {path}", found="empty", expected="a file or folder of public keys (PEM)"
        )
    return keys


def key_id(public_key: Any) -> str:
    """Returns the id of a public key, 16 hex digits."""
    return hashlib.sha256(public_key.public_bytes_raw()).hexdigest()[:16]


def _public_keys(file: Path) -> list[Any]:
    ed25519, serialization = _cryptography()
    blocks = [block.group(0) for block in PEM_BLOCK.finditer(read_file(file, "trusted key"))]
    try:
        keys = [serialization.load_pem_public_key(block) for block in blocks]
    except ValueError:
        keys = []
    if not keys or not all(isinstance(key, ed25519.Ed25519PublicKey) for key in keys):
        raise ConfigError(
            f"trusted key {file}", found="something else", expected="Ed25519 public keys in PEM"
        )
    return keys


def _cryptography() -> tuple[ModuleType, ModuleType]:
    """Returns the modules ``ed25519`` and ``serialization``."""
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise ConfigError(
            "signatures of bundles",
            found="asked for",
            expected="an installation with the extra [signing]",
            cure="Run: pip install 'recserve[signing]'",
        ) from error
    return ed25519, serialization
