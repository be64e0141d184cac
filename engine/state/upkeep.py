"""What a log needs from time to time: old events go, and users' keys follow the file of the master keys."""

import threading

import structlog

from recserve.engine.state.distant import AnyState
from recserve.errors import RecserveError

log = structlog.get_logger("recserve.state")

HOUR_SECONDS = 3600.0


class Upkeep:
    """Looks after ``state`` at once and then every so many seconds, on a thread, until :meth:`stop`."""

    def __init__(self, state: AnyState, *, every_seconds: float = HOUR_SECONDS) -> None:
        self._state = state
        self._every_seconds = every_seconds
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="recserve-upkeep", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Returns when nothing is under way any more."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                look_after(self._state)
            except RecserveError as error:
                # A full disk or an unreadable key file: the log goes on as it is, and is looked after later.
                log.error("upkeep of the event log failed", error=str(error))
            if self._stopped.wait(self._every_seconds):
                return


def look_after(state: AnyState) -> tuple[int, int]:
    """Removes events beyond the retention and follows the key file.

    Returns the numbers of removed events and of users whose key was closed anew.
    """
    n_events = state.expire()
    n_users = state.follow_key_file()
    if n_events or n_users:
        log.info("event log looked after", events_removed=n_events, user_keys_rewrapped=n_users)
    return n_events, n_users
