"""How many bundles were refused, by reason."""

import threading
from collections import Counter

from recserve.errors import BundleInvalid


class Refusals:
    """Counts since the start; safe to use from any thread."""

    def __init__(self) -> None:
        # Guards _counts.
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def note(self, error: BaseException) -> None:
        """Counts ``error`` where it is the refusal of a bundle."""
        if isinstance(error, BundleInvalid):
            with self._lock:
                self._counts[str(error.reason)] += 1

    def counts(self) -> dict[str, int]:
        """Returns how many there were by reason (``BundleReason``)."""
        with self._lock:
            return dict(self._counts)
