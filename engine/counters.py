"""Counts that several threads add to."""

import threading


class Counters:
    """Named counts from 0 on; safe to use from any thread."""

    def __init__(self, *names: str) -> None:
        # Guards _counts.
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(names, 0)

    def add(self, **increments: int) -> None:
        """Adds to the counts that are named."""
        with self._lock:
            for name, increment in increments.items():
                self._counts[name] += increment

    def read(self) -> dict[str, int]:
        """Returns all counts as of one moment."""
        with self._lock:
            return dict(self._counts)

    def reset(self) -> None:
        """Sets all counts to 0."""
        with self._lock:
            self._counts = dict.fromkeys(self._counts, 0)
