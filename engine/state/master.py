"""The master keys: from a file or the environment, several while they are being rotated.

A key file has one key a line, "ID BASE64" (32 bytes); the last line is the current key, those above only
open what they once closed. A server reads the file again when it changes, wraps every user's key anew with
the current one, and then the older lines may go.
"""

import base64
import binascii
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from recserve.errors import ConfigError

ENVIRONMENT = "RECSERVE_STATE_KEY"
KEY_BYTES = 32
KEY_ID_HEX = 8


@dataclass(frozen=True, slots=True)
class MasterKeys:
    """Keys by id; ``current`` is the id of the one that new things are closed with."""

    current: str
    # Secrets stay out of every representation.
    keys: dict[str, bytes] = field(repr=False)


def new_line() -> str:
    """Returns a line with a fresh key."""
    return (
        f"{secrets.token_hex(KEY_ID_HEX // 2)} {base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode()}\n"
    )


def read_master_keys(file: Path) -> MasterKeys:
    """Reads the environment when it has keys, else ``file``; raises :class:`ConfigError` for no keys."""
    if text := os.environ.get(ENVIRONMENT):
        return parse(text, f"{ENVIRONMENT} in the environment")
    try:
        status = file.stat()
        text = file.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"key file {file}", found="not readable", expected="lines of ID BASE64") from error
    if status.st_mode & 0o077:
        raise ConfigError(
            f"key file {file}",
            found=f"mode {status.st_mode & 0o777:04o}",
            expected="readable by its owner only",
            cure=f"Run: chmod 600 {file}",
        )
    return parse(text, f"key file {file}")


def parse(text: str, name: str) -> MasterKeys:
    """Reads the lines of a key file."""
    keys: dict[str, bytes] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        key_id, _, encoded = line.strip().partition(" ")
        try:
            key = base64.b64decode(encoded, validate=True)
        except binascii.Error:
            key = b""
        if len(key) != KEY_BYTES or key_id in keys or not key_id.isalnum():
            # What is there may be a secret: it is not shown.
            raise ConfigError(
                f"line {number} of {name}", found="no key", expected="a new ID and 32 bytes in base64"
            )
        keys[key_id] = key
    if not keys:
        raise ConfigError(name, found="empty", expected="at least one key")
    return MasterKeys(next(reversed(keys)), keys)


def add_key(file: Path) -> str:
    """Appends a fresh key, making the file (mode 0600) when it is not there; returns the key's id."""
    line = new_line()
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, line.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return line.partition(" ")[0]
