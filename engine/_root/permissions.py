"""Who may read or change the files that security hangs on: keys, policies, certificates."""

import os
import stat
from pathlib import Path

from recserve.errors import ConfigError

OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH
OTHERS_MAY_ANYTHING = stat.S_IRWXG | stat.S_IRWXO
# What root hands to the group of a service (a mounted secret): reading, nothing else.
MORE_THAN_GROUP_MAY_READ = stat.S_IWGRP | stat.S_IXGRP | stat.S_IRWXO


def check_secret(path: Path, name: str) -> None:
    """Raises :class:`ConfigError` when someone else than its owner may read the file.

    The rule is PostgreSQL's for keys: ours with mode 0600 or less, or root's with 0640 or less.
    """
    status = _status(path, name)
    mine = status.st_uid == os.geteuid()
    if (not mine and status.st_uid != 0) or status.st_mode & (
        OTHERS_MAY_ANYTHING if mine else MORE_THAN_GROUP_MAY_READ
    ):
        raise ConfigError(
            f"{name} {path}",
            found=f"mode {stat.S_IMODE(status.st_mode):04o} of user {status.st_uid}",
            expected="readable by its owner only",
            cure=f"Run: chmod 600 {path}",
        )


def check_trusted(path: Path, name: str) -> None:
    """Raises :class:`ConfigError` when someone else than its owner may change the file."""
    status = _status(path, name)
    if status.st_uid not in (os.geteuid(), 0) or status.st_mode & OTHERS_MAY_WRITE:
        raise ConfigError(
            f"{name} {path}",
            found=f"mode {stat.S_IMODE(status.st_mode):04o} of user {status.st_uid}",
            expected="writable by its owner only",
            cure=f"Run: chmod go-w {path}",
        )


def read_file(path: Path, name: str) -> bytes:
    """Returns the bytes of a file; raises :class:`ConfigError` when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{name} {path}", found=(error.strerror or "unreadable").lower(), expected="a readable file"
        ) from error


def _status(path: Path, name: str) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise ConfigError(
            f"{name} {path}", found=(error.strerror or "unreadable").lower(), expected="a readable file"
        ) from error
