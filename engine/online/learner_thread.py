"""The thread that follows the log and lets a learner learn, page by page, from the first event on."""

import threading

import structlog

from recserve.engine.online.learner import Learner
from recserve.engine.online.snapshots import SnapshotFile
from recserve.engine.state.distant import AnyState
from recserve.errors import RecserveError

log = structlog.get_logger("recserve.online")

# The log's writer reads them: few, so that those who record events wait little.
PAGE = 256
RETRY_SECONDS = 1.0


class LearnerThread:
    """Follows ``state`` until :meth:`close`; a snapshot in ``file`` saves learning the beginning again.

    Exactly once, whatever kills the process: a model and its place in the log are one file, replaced at once,
    and what comes after that place is learned from the log.
    """

    def __init__(self, state: AnyState, learner: Learner, file: SnapshotFile | None) -> None:
        self._state, self.learner, self._file = state, learner, file
        snapshot = file.read() if file else None
        if snapshot is not None:
            learner.restore(snapshot)
        self._wake = threading.Event()
        # Notified when the learner has come further.
        self._moved = threading.Condition()
        self._closed = False
        state.listeners.append(self)
        self._thread = threading.Thread(target=self._run, name="recserve-online", daemon=True)
        self._thread.start()

    def stored(self) -> None:
        """Hears that the log has new events."""
        self._wake.set()

    def erased(self, user_key: bytes) -> None:
        """Hears that a user is to be forgotten."""
        self.learner.users.erase(user_key.hex())

    def wait_until(self, seq: int, timeout_seconds: float) -> bool:
        """Returns whether the event of number ``seq`` was learned in time."""
        with self._moved:
            return self._moved.wait_for(lambda: self.learner.followed_seq >= seq, timeout_seconds)

    def close(self) -> None:
        """Ends the thread and saves the model."""
        if self._closed:
            return
        self._closed = True
        self._wake.set()
        self._thread.join()
        self._state.listeners.remove(self)
        if self._file is not None and self.learner.n_examples:
            self._file.write(self.learner.snapshot())

    def _run(self) -> None:
        is_failing = False
        while True:
            self._wake.clear()
            # After that: who closes sets both, in the other order.
            if self._closed:
                return
            try:
                is_behind = self._learn()
                is_failing = False
            except RecserveError as error:
                # Slates go on with what was learned.
                if not is_failing:
                    log.error("online learning waits for the event log", error=str(error))
                is_failing, is_behind = True, False
            if not is_behind:
                self._wake.wait(RETRY_SECONDS if is_failing else None)

    def _learn(self) -> bool:
        """Learns from the next events; returns whether there were any."""
        events, last_seq = self._state.events_after(self.learner.followed_seq, limit=PAGE).result()
        if last_seq:
            self.learner.apply(events, last_seq)
            with self._moved:
                self._moved.notify_all()
        return last_seq > 0
