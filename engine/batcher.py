"""Merges calls that arrive at about the same time into batches, computed on threads of its own.

What a batch is made of is decided by engine/batch_policy.py; here is what that needs around it: the queue,
the clock, the threads, and the promise that each entry is answered exactly once whatever the work does.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, Generic

import structlog

from recserve.engine.batch_policy import PRIORITIES, BatcherConfig, Decision, Rates, decide, surplus
from recserve.engine.batch_run import BatchRun, E
from recserve.engine.breaker import Breakers
from recserve.engine.brownout import Brownout, has_waited, will_be_late
from recserve.engine.counters import Counters
from recserve.engine.relief import Relief
from recserve.engine.threads import Crew, this_crew
from recserve.errors import Overloaded, Unavailable

log = structlog.get_logger("recserve.batcher")

# So long at most a batch waits for company until the policy is asked again: one in haste may have come.
PAUSE_SECONDS = 0.004
# How soon a thread sees at the end that nobody waits any more.
END_SECONDS = 0.0005


class Batcher(Generic[E]):
    """Runs ``answer(entries)`` for batches of submitted entries; ``answer`` answers each of them.

    When it raises, the entries that are not answered yet are run again, one by one, once: a bad one fails
    alone, with its own error. A thread that dies, or does not come back from a batch, is replaced and its
    batch answered UNAVAILABLE. Where batch after batch fails, see engine/breaker.py.
    """

    def __init__(
        self,
        answer: Callable[[list[E]], None],
        config: BatcherConfig,
        *,
        answer_degraded: Callable[[list[E]], None] | None = None,
        answer_smaller: Callable[[list[E]], None] | None = None,
        on_exhausted: Callable[[], None] = lambda: None,
        on_stuck: Callable[[int], None] = lambda thread: None,
        model_of: Callable[[E], str] = lambda entry: "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``answer_degraded``: answers at little cost who would wait too long, see engine/brownout.py;
        ``answer_smaller``: takes the place of ``answer`` in a brown-out, which it makes shorter.

        ``on_stuck(thread)`` hears of a thread that has not come back from ``answer`` and was given up.
        ``model_of``: who answers an entry; a model that fails is left alone, and not the others.
        """
        self._answer = answer
        # Without a brown-out nobody is degraded.
        self._answer_degraded = answer_degraded or answer
        self._answer_smaller = answer_smaller or answer
        self._config = config
        self._clock = clock
        # Filled by any thread without a lock; emptied by the one that forms a batch.
        self._inbox: deque[E] = deque()
        # One for each thread that may compute now. Who finds none goes: who computes looks again who waits.
        self._places: deque[None] = deque([None] * config.threads)
        # Held by all threads that sleep until there is something to do; released to wake one.
        self._asleep = threading.Lock()
        # Held by the thread that waits until ``_company`` are there, and released then.
        self._alone, self._company = threading.Lock(), math.inf
        # What a thread knows of itself: whether it ``lends`` itself to compute what it submits.
        self._own = threading.local()
        # Held by the one thread that forms the next batch; guards the fields below.
        self._forming = threading.Lock()
        self._classes: tuple[deque[E], ...] = tuple(deque() for _ in range(PRIORITIES))
        # How many they hold, for those who come to look.
        self._n_classed = 0
        self._rates = Rates()
        self._brownout = Brownout() if answer_degraded is not None and config.brownout else None
        self._breakers = Breakers()
        self._model_of = model_of
        self._on_stuck = on_stuck
        self._closing = self._closed = False
        self._counters = Counters(
            *("batches", "rows", "degraded_rows", "late_rows", "gone_rows"),
            *("failed_batches", "failed_rows", "stuck_batches"),
        )
        self._run = BatchRun[E](self._counters, model_of, clock)
        self._relief = Relief[E](
            self._degrade, config.max_size, is_on=lambda: self._is_pressed, surplus=self._take_surplus
        )
        self._on_exhausted = on_exhausted
        self._crew = self._new_crew("batcher", config.threads, self._work, self._give_up)
        self._relievers = self._new_crew(
            "relief", int(self._brownout is not None), self._relief.work, self._fail_stuck
        )

    def _new_crew(
        self, name: str, n_threads: int, work: Callable[[], None], on_stuck: Callable[[int, list[E]], None]
    ) -> Crew:
        return Crew(
            f"recserve-{name}",
            n_threads,
            work,
            # What waits is for another one.
            on_death=lambda error: self._wake_one(),
            on_exhausted=self._on_exhausted,
            stuck_seconds=self._config.stuck_seconds,
            on_stuck=on_stuck,
        )

    @property
    def n_waiting(self) -> int:
        """Entries that wait, those that are done already included."""
        return len(self._inbox) + self._n_classed

    @property
    def _is_pressed(self) -> bool:
        return self._brownout is not None and self._brownout.is_on

    def submit(self, request: Any, entry: E) -> None:
        """Queues ``entry``; a handler of the service seam.

        Raises :class:`Overloaded` when too many wait, :class:`Unavailable` when the batcher closes.
        """
        if self._closing:
            raise _closed()
        n_waiting = self.n_waiting
        if n_waiting >= self._config.max_waiting:
            raise Overloaded(
                "waiting requests",
                found=n_waiting,
                expected=f"below {self._config.max_waiting}",
                cure="Try again after a pause.",
            )
        self._inbox.append(entry)
        if self._closed:
            self._refuse_the_rest()  # Nobody is left who would look.
        elif n_waiting + 1 >= self._company:
            _release(self._alone)
        elif not getattr(self._own, "lends", False):
            self._wake_one()

    def receive(self, receive: Callable[[], bool]) -> Crew:
        """Starts threads that call ``receive`` again and again, until it returns False; returns them.

        ``receive`` waits for calls and submits those that came. Its thread then computes them, unless as many
        do as may: who asks alone is answered without a change of threads. There is one thread more than may
        compute: whatever is computed, somebody receives.
        """

        def work() -> None:
            self._own.lends = True
            while receive() and self._help():
                pass

        return self._new_crew("receiver", self._config.threads + 1, work, self._give_up)

    def stats(self) -> dict[str, int]:
        """Returns counts since the start.

        ``batches`` and ``rows`` computed; ``degraded_rows`` that got the cheaper answer; ``late_rows``
        dropped because their deadline could not be met; ``gone_rows`` skipped because their caller had left;
        ``failed_batches`` and the ``failed_rows`` that failed again alone; ``stuck_batches`` without an end.
        """
        return self._counters.read()

    def close(self) -> None:
        """Refuses further entries, computes what waits, then ends the threads."""
        self._closing = True
        self._wake_one()
        self._crew.join()
        self._relief.close()
        self._relievers.join()
        self._closed = True
        self._refuse_the_rest()

    def _refuse_the_rest(self) -> None:
        with suppress(IndexError):
            while True:
                self._inbox.popleft().fail(_closed())

    def _wake_one(self) -> None:
        _release(self._asleep)

    def _work(self) -> None:
        while self._help():
            if self._closing and not self.n_waiting:
                self._wake_one()  # It is the others' end as well.
                return
            # At the end a thread that receives may still be at work.
            self._asleep.acquire(timeout=END_SECONDS if self._closing else -1)

    def _help(self) -> bool:
        """Computes what waits, unless as many threads do as may; False: this one was given up, so it ends."""
        crew = this_crew()
        while self.n_waiting:
            try:
                self._places.pop()
            except IndexError:
                return True
            is_kept = True
            try:
                if (decision := self._next()) is not None:
                    # Not before: who waits for company is not stuck.
                    crew.begins([*decision.take, *decision.late])
                    try:
                        self._carry_out(decision)
                    finally:
                        is_kept = crew.ends()
            finally:
                # In place of who was given up another one computes already.
                if is_kept:
                    self._places.append(None)
            if not is_kept:
                return False
        return True

    def _carry_out(self, decision: Decision[E]) -> None:
        if decision.degrade:
            self._relief.put(decision.degrade)
        if self._config.threads > 1 and self.n_waiting:
            self._wake_one()
        try:
            if decision.take:
                self._compute(decision.take)
        finally:
            # After the others, whom it would make late as well.
            self._refuse(decision.late)
        if self._is_pressed and not decision.take:
            # Nobody has the time that a batch takes. To wake two threads for each who comes now would leave
            # that which receives so little that all who come after have none either.
            with self._forming:
                self._pause(PAUSE_SECONDS, self._config.max_size)

    def _next(self) -> Decision[E] | None:
        """Returns what to do next, perhaps after a pause in which others come; None when nobody waits."""
        with self._forming:
            while True:
                self._drain_inbox()
                now = self._clock()
                may_degrade = self._brownout is not None
                config = self._config if not self._closing else replace(self._config, max_delay_ms=0.0)
                decision = decide(self._classes, now, config, self._rates, may_degrade=may_degrade)
                self._apply(decision)
                if decision.take or decision.degrade or decision.late:
                    self._watch_the_waiting(decision, now)
                    return decision
                if decision.wake_at is None:
                    return None
                self._pause(decision.wake_at - now, decision.company)

    def _take_surplus(self) -> list[E]:
        """Takes those who wait for more than the next batch out of the queue, in a brown-out."""
        # Where a batch is being formed, nobody waits for one that is computed.
        if self._brownout is None or not self._is_pressed or not self._forming.acquire(blocking=False):
            return []
        try:
            self._drain_inbox()
            now = self._clock()
            decision = surplus(self._classes, now, self._config.max_size)
            self._apply(decision)
            if decision.degrade:
                self._brownout = self._brownout.after(True, now)
        finally:
            self._forming.release()
        self._refuse(decision.late)
        return decision.degrade

    def _watch_the_waiting(self, decision: Decision[E], now: float) -> None:
        taken = (*decision.take, *decision.degrade)
        if self._brownout is None or not taken:
            return
        config, before = self._config, self._brownout.is_on
        shortest = (config.normal_wait_ms + (config.max_delay_ms or 0)) / 1000
        n_batches = self.n_waiting / (config.max_size * config.threads)
        seconds = self._rates.expected_seconds(now)
        waited = has_waited(taken, n_batches, now, seconds, shortest)
        is_sure = will_be_late(taken, self._classes, n_batches, now, seconds)
        is_pressed = waited or (before and bool(decision.degrade))
        self._brownout = self._brownout.after(is_pressed, now, is_sure=is_sure)
        if self._brownout.is_on != before:
            log.warning("brown-out ends" if before else "brown-out begins", waiting=self.n_waiting)
            # Who gives cheaper answers has slept until now.
            self._relief.put([])

    def _pause(self, seconds: float, company: int) -> None:
        """Lets others come, until ``company`` wait: woken once, for each time costs those who bring them."""
        # First: who comes after the look at how many wait has seen it.
        self._company = company
        if seconds > 0 and not self._closing and self.n_waiting < company:
            self._alone.acquire(timeout=min(seconds, PAUSE_SECONDS))
        self._company = math.inf

    def _drain_inbox(self) -> None:
        for _ in range(len(self._inbox)):
            # One by one: who submits meanwhile must not be refused because many count twice.
            self._n_classed += 1
            entry = self._inbox.popleft()
            self._classes[min(max(entry.priority, 0), PRIORITIES - 1)].append(entry)

    def _apply(self, decision: Decision[E]) -> None:
        self._n_classed -= sum(decision.consumed)
        for entries, n in zip(self._classes, decision.consumed, strict=True):
            for _ in range(n):
                entries.popleft()
        if decision.n_gone:
            self._counters.add(gone_rows=decision.n_gone)

    def _refuse(self, late: list[E]) -> None:
        for entry in late:
            entry.expire()
        if late:
            self._counters.add(late_rows=len(late))

    def _give_up(self, thread: int, batch: list[E]) -> None:
        self._note(batch, {self._model_of(entry) for entry in batch})
        self._fail_stuck(thread, batch)
        self._places.append(None)
        self._wake_one()

    def _fail_stuck(self, thread: int, batch: list[E]) -> None:
        self._counters.add(stuck_batches=1)
        for entry in batch:
            entry.fail(
                Unavailable("batch", found="stuck", expected="computed", cure="Try again after a moment.")
            )
        self._on_stuck(thread)

    def _note(self, batch: list[E], failed: set[str]) -> None:
        # Without a brown-out nobody else answers.
        if self._brownout is None or not (failed or self._breakers):
            return
        now = self._clock()
        for model in {self._model_of(entry) for entry in batch}:
            if self._breakers.note(model, model in failed, now):
                log.warning("the model fails, others answer for it", model=model)

    def _compute(self, batch: list[E]) -> None:
        start = self._clock()
        # This thread may have stood still since the batch was decided.
        late = [entry for entry in batch if entry.deadline <= start]
        if late:
            self._refuse(late)
            batch = [entry for entry in batch if entry.deadline > start]
            if not batch:
                return
        if self._breakers:
            batch = self._without_failing(batch, start)
            if not batch:
                return
        failed = self._run.run(self._answer_smaller if self._is_pressed else self._answer, batch)
        if this_crew().has_given_up():
            return
        self._note(batch, failed)
        end = self._clock()
        # Several threads may do this at once; a mean that misses one batch is as good.
        self._rates = self._rates.after_batch(len(batch), end - start, end, self.n_waiting)
        self._counters.add(batches=1, rows=len(batch))

    def _without_failing(self, batch: list[E], now: float) -> list[E]:
        """Has the cheaper answer given to the entries of models that are left alone; returns the others."""
        alone = {model for model in map(self._model_of, batch) if self._breakers.is_open(model, now)}
        if resting := [entry for entry in batch if self._model_of(entry) in alone]:
            self._relief.put(resting)
        return [entry for entry in batch if self._model_of(entry) not in alone]

    def _degrade(self, batch: list[E]) -> None:
        self._run.run(self._answer_degraded, batch)
        self._counters.add(degraded_rows=len(batch))


def _release(lock: threading.Lock) -> None:
    """Wakes one of those who sleep on ``lock``, or who will next."""
    if lock.locked():
        with suppress(RuntimeError):  # Another thread was faster.
            lock.release()


def _closed() -> Unavailable:
    return Unavailable("server", found="shutting down", expected="serving", cure="Ask another one.")
