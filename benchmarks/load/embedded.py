"""The same load on an engine in this process: threads instead of connections."""

import math
import threading
import time
from collections.abc import Callable
from pathlib import Path

from recserve.benchmarks.load.connection import INTERNAL, OK
from recserve.benchmarks.load.messages import Question, Workload
from recserve.benchmarks.load.options import Asked, Client, Pace
from recserve.benchmarks.load.process import Samples, join, to_samples
from recserve.benchmarks.load.schedule import Schedule, schedules
from recserve.benchmarks.load.sending import Journal
from recserve.engine import Engine, EngineConfig, Request
from recserve.engine.traces import FEEDBACK, RECOMMEND, SIMILAR
from recserve.engine.types import Slate
from recserve.engine.wire.status import code_number, row_of
from recserve.errors import RecserveError


def run_embedded(
    bundle: Path,
    asked: Asked,
    workload: Workload,
    pace: Pace,
    client: Client,
    on_tick: Callable[[float], None] = lambda seconds: None,
) -> Samples:
    """Asks an engine from threads, as many as ``concurrency`` or, in an open loop, ``connections``.

    A call cannot be given up: one that took longer than ``timeout`` counts as an answer that came late.
    """
    n_threads = pace.concurrency or client.connections
    with Engine.load(bundle, EngineConfig(provider="cpu")) as engine:
        [schedule] = schedules(pace, 1, workload.times)
        caller = _Caller(engine, asked, workload, schedule)
        cpu, start = time.process_time(), time.monotonic()
        threads = [threading.Thread(target=caller.run, args=(start,)) for _ in range(n_threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(1.0)
                on_tick(time.monotonic() - start)
        busy = (time.process_time() - cpu) / max(time.monotonic() - start, 1e-9)
    caller.check()
    samples = join([to_samples(caller.journal, workload, lambda reply: {}, busy)])
    samples.stages = caller.stages
    return samples


class _Caller:
    def __init__(self, engine: Engine, asked: Asked, workload: Workload, schedule: Schedule) -> None:
        self._engine = engine
        self._ask = {
            question: Request(
                user_id=question.id,
                k=question.k or asked.k,
                history=question.items or None,
                variant=asked.variant,
            )
            for question in workload.questions
            if question.kind == RECOMMEND
        }
        self._k, self._variant = asked.k, asked.variant
        self._questions = workload.questions
        self._order = workload.order.tolist()
        self._schedule = schedule
        self._lock = threading.Lock()
        self._in_flight = 0
        self._crashes: list[Exception] = []
        self.journal = Journal()
        self.stages: dict[int, dict[str, int]] = {}

    def run(self, start: float) -> None:
        """What each thread does: wait for what is due, ask, note."""
        while not self._crashes:
            with self._lock:
                now = time.monotonic() - start
                due = self._schedule.next_due()
                if due == math.inf and not self._in_flight:
                    return
                number = -1
                if due <= now:
                    number = self.journal.open(self._schedule.pop(), now)
                    self.journal.sent[number] = now
                    self._in_flight += 1
            if number < 0:
                time.sleep(min(max(due - now, 0.0), 0.001))
                continue
            self._one(number, start)

    def _one(self, number: int, start: float) -> None:
        code, slate = OK, None
        try:
            slate = self._answer(self._questions[self._order[number % len(self._order)]])
        except RecserveError as error:
            row = row_of(type(error))
            code = code_number(row.code) if row else INTERNAL
        except Exception as error:  # noqa: BLE001 - told to the thread that waits
            self._crashes.append(error)
        now = time.monotonic() - start
        with self._lock:
            self._in_flight -= 1
            self.journal.close(number, now, code)
            self._schedule.answered(now)
            if slate is not None:
                self.stages[number] = dict(slate.stage_ns)

    def _answer(self, question: Question) -> Slate | None:
        if question.kind == FEEDBACK:
            for item in question.items:
                self._engine.observe(user_id=question.id, item_id=item)
            return None
        if question.kind == SIMILAR:
            return self._engine.similar_items(question.id, question.k or self._k, variant=self._variant)
        return self._engine.recommend(self._ask[question])

    def check(self) -> None:
        """Raises what a thread ended with."""
        if self._crashes:
            raise self._crashes[0]
