"""Shadow traffic: a share of the answered requests is asked again of another version, and compared.

The copy waits in a bounded queue and runs on one thread, a few at a time; no caller waits for it or hears
of its failures. What does not fit is dropped and counted. (The thread keeps its priority: one that is put
aside by the scheduler while it holds the interpreter lock would stop all others.)
"""

import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from queue import Empty, Full, Queue

import structlog

from recserve.engine.engine import Engine
from recserve.engine.explain.explanation import EXPLAIN_NONE
from recserve.engine.models.registry import ActiveRoute, Registry
from recserve.engine.ranked import Ranked, slates
from recserve.engine.threads import Crew
from recserve.engine.types import Request, Slate
from recserve.errors import RecserveError

log = structlog.get_logger("recserve.models")

MAX_WAITING = 256
MAX_BATCH = 16


@dataclass(frozen=True, slots=True)
class Asked:
    """A request with the answer that its caller got, which took ``seconds``."""

    active: ActiveRoute[Engine]
    request: Request
    answer: Ranked
    seconds: float


@dataclass(frozen=True, slots=True)
class ShadowStats:
    """Since the start: requests ``compared``, ``dropped`` (no room) and ``failed``.

    Of those compared: the mean share of the caller's items that the shadow had too, how often the first
    item was the same, and the mean milliseconds of the caller's batch and of the shadow's.
    """

    version: str
    compared: int
    dropped: int
    failed: int
    mean_overlap: float
    same_first: int
    mean_ms: float
    mean_shadow_ms: float


def overlap(ours: Slate, theirs: Slate) -> float:
    """Returns the share of the items of ``ours`` that ``theirs`` has too; 1 for two empty slates."""
    items = {item.item_id for item in ours.items}
    if not items:
        return 1.0 if not theirs.items else 0.0
    return len(items & {item.item_id for item in theirs.items}) / len(items)


class ShadowRunner:
    """Runs the copies; one per server. Statistics are kept by (model, shadow version)."""

    def __init__(self, registry: Registry[Engine]) -> None:
        self._registry = registry
        self._queue: Queue[Asked | None] = Queue(MAX_WAITING)
        # Guards the fields below.
        self._lock = threading.Lock()
        self._sums: dict[tuple[str, str], Counter[str]] = {}
        self._due: dict[tuple[str, str], float] = {}
        self._crew: Crew | None = None

    def offer(self, answered: Iterable[Asked]) -> None:
        """Takes the wanted share of ``answered``; never waits."""
        for asked in answered:
            shadow = asked.active.route.shadow
            if shadow is None:
                continue
            key = (asked.active.model, shadow.version)
            with self._lock:
                if self._crew is None:
                    self._crew = Crew("recserve-shadow", 1, self._work)
                # Exactly the share, evenly spread: no random numbers to seed.
                due = self._due.get(key, 0.0) + shadow.share
                self._due[key] = due - 1 if due >= 1 else due
            if due >= 1:
                try:
                    self._queue.put_nowait(asked)
                except Full:
                    self._add(key, dropped=1)

    def stats(self, model: str, version: str) -> ShadowStats | None:
        """Returns what was compared with ``version`` so far, None before the first request."""
        with self._lock:
            sums = Counter(self._sums.get((model, version), {}))
        if not sums:
            return None
        n = max(1, sums["compared"])
        return ShadowStats(
            version,
            int(sums["compared"]),
            int(sums["dropped"]),
            int(sums["failed"]),
            sums["overlap"] / n,
            int(sums["same_first"]),
            sums["ms"] / n,
            sums["shadow_ms"] / n,
        )

    def close(self) -> None:
        """Compares what waits and ends the thread."""
        if self._crew is not None:
            self._queue.put(None)
            self._crew.join()

    def _work(self) -> None:
        is_open = True
        while is_open:
            batch = self._next_batch()
            is_open = None not in batch
            asked = [entry for entry in batch if entry is not None]
            for active in dict.fromkeys(entry.active for entry in asked):
                if active.route.shadow:
                    version = active.route.shadow.version
                    self._compare(active, version, [entry for entry in asked if entry.active is active])

    def _next_batch(self) -> list[Asked | None]:
        batch = [self._queue.get()]
        while len(batch) < MAX_BATCH:
            try:
                batch.append(self._queue.get_nowait())
            except Empty:
                break
        return batch

    def _compare(self, active: ActiveRoute[Engine], version: str, batch: list[Asked]) -> None:
        key = (active.model, version)
        # Lists are compared, and how long they take: nobody reads why.
        requests = [replace(asked.request, explain=EXPLAIN_NONE) for asked in batch]
        try:
            with self._registry.lease(active.model) as lease:
                if lease.active is not active:
                    return  # Another route: nobody asked for this comparison any more.
                start = time.perf_counter()
                answers = active.engines[version].recommend_each(requests)
                milliseconds = (time.perf_counter() - start) * 1000
        except Exception as error:  # noqa: BLE001 - a shadow fails in the dark, counted
            log.warning("shadow failed", version=version, error=type(error).__name__)
            self._add(key, failed=len(batch))
            return
        ours = slates([asked.answer for asked in batch])
        for asked, mine, answer in zip(batch, ours, answers, strict=True):
            if isinstance(answer, RecserveError):
                self._add(key, failed=1)
                continue
            firsts = [slate.items[0].item_id if slate.items else "" for slate in (mine, answer)]
            self._add(
                key,
                compared=1,
                overlap=overlap(mine, answer),
                same_first=int(firsts[0] == firsts[1]),
                ms=asked.seconds * 1000,
                shadow_ms=milliseconds,
            )

    def _add(self, key: tuple[str, str], **increments: float) -> None:
        with self._lock:
            self._sums.setdefault(key, Counter()).update(increments)
