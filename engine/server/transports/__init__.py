"""What carries calls to the chain: one module per way, all behind :class:`Transport`."""

import os
from collections.abc import Callable
from typing import Protocol

from recserve.engine.addresses import UNIX_PREFIX
from recserve.engine.threads import Crew

# Starts threads that call a function, which waits for calls and dispatches them, until it returns False.
Receivers = Callable[[Callable[[], bool]], Crew]


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


def one_receiver(receive: Callable[[], bool]) -> Crew:
    """Starts one thread that does nothing but receive."""

    def work() -> None:
        while receive():
            pass

    return Crew("recserve-receiver", 1, work)
