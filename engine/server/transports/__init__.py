"""What carries calls to the chain: one module per way, all behind :class:`Transport`."""

import os
from typing import Protocol

from recserve.engine.addresses import UNIX_PREFIX


class Transport(Protocol):
    """Binds an address and hands every call to a chain."""

    def start(self) -> str:
        """Binds and accepts calls; returns the address with the real port.

        Raises :class:`ConfigError` when the address cannot be bound or a method cannot be carried.
        """

    def stop(self, grace_seconds: float) -> None:
        """Accepts nothing new, gives what is open ``grace_seconds``, closes; stopping twice is fine."""


def guard_socket(address: str) -> None:
    """Makes a Unix socket its owner's own: who may write to it may connect."""
    if address.startswith(UNIX_PREFIX):
        os.chmod(address.removeprefix(UNIX_PREFIX), 0o600)
