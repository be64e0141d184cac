"""Answers that are given again: to the same request of a user who did nothing since.

A request that is asked twice in one batch is computed once. Under a brown-out, when popular items are all
that time allows, an answer that is out of date is still the user's own and goes before them, marked as such.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from recserve.engine.explain.explanation import EXPLAIN_NONE
from recserve.engine.ranked import Ranked, new_slate_ids
from recserve.engine.types import DEGRADED_CACHE, SOURCE_EXPLORE, Request

CACHE = "cache"  # the stage of an answer that was computed before
STALE_TIMES = 6  # a stale answer is kept so many times as long as a fresh one
_FIELDS = tuple(field.name for field in fields(Request))


@dataclass(frozen=True, slots=True)
class _Kept:
    state: bytes
    at: float
    answer: Ranked


class SlateCache:
    """At most ``limit`` answers, the oldest dropped first; safe to call from several threads."""

    def __init__(self, limit: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """``seconds``: how long an answer is given again; the caller's clock and context move on."""
        self._limit = limit
        self._seconds = seconds
        self._clock = clock
        # Guards _kept, which is in the order of time.
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, _Kept] = OrderedDict()
        self._epoch: Hashable = None

    def __len__(self) -> int:
        return len(self._kept)

    def clear(self) -> None:
        """Forgets all answers."""
        with self._lock:
            self._kept.clear()

    def answer(
        self,
        requests: Sequence[Request],
        states: Sequence[bytes | None],
        compute: Callable[[list[int]], list[Ranked]],
        *,
        stale: bool = False,
        epoch: Hashable = None,
    ) -> list[Ranked]:
        """Returns an answer for each request; ``compute(rows)`` answers those whose answers are not kept.

        states[i]: what the answer to ``requests[i]`` depends on and the request does not say, the events of
        its user; None: never kept (an erased user). ``stale``: out of date is better than computed now.
        ``epoch``: when it changes, everything is forgotten, and what is being computed is not kept.
        """
        start = time.perf_counter_ns()
        self._forget_before(epoch)
        keys = _keys(requests, states)
        kept = self._find(keys, states, stale)
        # Rows of the same request, but those found and those that are not to be kept, are computed once.
        rows_of: dict[Hashable, list[int]] = {}
        for i, key in enumerate(keys):
            if i not in kept:
                rows_of.setdefault(i if key is None else (key, states[i]), []).append(i)
        answers = _timed(kept, start)
        groups = list(rows_of.values())
        computed = compute([rows[0] for rows in groups]) if groups else []
        for rows, one in zip(groups, computed, strict=True):
            answers.update(dict.fromkeys(rows, one))
            self._keep(keys[rows[0]], states[rows[0]], one, epoch)
        return _with_own_ids([answers[i] for i in range(len(requests))])

    def find(
        self, requests: Sequence[Request], states: Sequence[bytes | None], *, epoch: Hashable = None
    ) -> dict[int, Ranked]:
        """Returns the answers that are kept, by row; arguments as of :meth:`answer`."""
        start = time.perf_counter_ns()
        self._forget_before(epoch)
        kept = _timed(self._find(_keys(requests, states), states, stale=False), start)
        return dict(zip(kept, _with_own_ids(list(kept.values())), strict=True))

    def _forget_before(self, epoch: Hashable) -> None:
        if epoch != self._epoch:
            with self._lock:
                self._epoch = epoch
                self._kept.clear()

    def _find(
        self, keys: Sequence[Hashable], states: Sequence[bytes | None], stale: bool
    ) -> dict[int, Ranked]:
        """The answers that are kept, by row."""
        found = {}
        now = self._clock()
        with self._lock:
            self._drop_old(now)
            for i, key in enumerate(keys):
                kept = self._kept.get(key) if key is not None else None
                if kept is None:
                    continue
                if kept.state == states[i] and now - kept.at < self._seconds:
                    found[i] = kept.answer
                elif stale:
                    found[i] = replace(kept.answer, degraded=(DEGRADED_CACHE,))
        return found

    def _keep(self, key: Hashable, state: bytes | None, answer: Ranked, epoch: Hashable) -> None:
        if key is None or state is None or answer.degraded or _is_drawn(answer):
            return
        with self._lock:
            if epoch != self._epoch:
                return
            self._kept.pop(key, None)
            self._kept[key] = _Kept(state, self._clock(), answer)
            if len(self._kept) > self._limit:
                self._kept.popitem(last=False)

    def _drop_old(self, now: float) -> None:
        while self._kept:
            oldest = next(iter(self._kept))
            if now - self._kept[oldest].at < STALE_TIMES * self._seconds:
                return
            del self._kept[oldest]


def _keys(requests: Sequence[Request], states: Sequence[bytes | None]) -> list[Hashable]:
    return [
        _key(request) if state is not None else None for request, state in zip(requests, states, strict=True)
    ]


def _timed(kept: Mapping[int, Ranked], start: int) -> dict[int, Ranked]:
    """Gives each answer the one stage that it took since ``start``."""
    spent = {CACHE: time.perf_counter_ns() - start}
    return {i: replace(one, stage_ns=spent) for i, one in kept.items()}


def _with_own_ids(answers: list[Ranked]) -> list[Ranked]:
    """A slate id names one slate, whatever it is a copy of."""
    ids = new_slate_ids(len(answers))
    return [replace(answer, slate_id=slate_id) for answer, slate_id in zip(answers, ids, strict=True)]


def _is_drawn(answer: Ranked) -> bool:
    """Whether chance brought some of its candidates: who asks again wants others."""
    return answer.origins is not None and SOURCE_EXPLORE in answer.origins.names


def _key(request: Request) -> Hashable:
    """What makes two requests the same; None for one whose answer is not kept."""
    if request.explain != EXPLAIN_NONE or request.page_token is not None:
        return None
    return tuple(_frozen(getattr(request, name)) for name in _FIELDS)


def _frozen(value: Any) -> Hashable:
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return frozenset(value.items())
    # repr() shortens long arrays.
    return tuple(value) if isinstance(value, Sequence | np.ndarray) else repr(value)
