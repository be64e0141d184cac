"""What tests of the batcher put into it: entries that count their answers, and work that waits at a gate."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

from recserve.engine.batch_policy import BatcherConfig
from recserve.engine.batcher import Batcher

TIMEOUT_SECONDS = 30
FAR = float("inf")
HOOKS = ("answer_degraded", "on_exhausted", "on_stuck", "model_of")


class Row:
    """An entry that counts its answers."""

    def __init__(self, value: int = 0, *, priority: int = 1, deadline: float = FAR) -> None:
        self.value, self.priority, self.deadline = value, priority, deadline
        self.received_at = 0.0
        self.stage_ns: dict[str, int] = {}
        self.answers: list[Any] = []
        self.answered = threading.Event()

    @property
    def is_done(self) -> bool:
        return bool(self.answers)

    def reply(self, answer: Any) -> bool:
        if self.answers:
            return False
        self.answers.append(answer)
        self.answered.set()
        return True

    def fail(self, error: BaseException) -> bool:
        return self.reply(error)

    def expire(self) -> bool:
        return self.reply("expired")

    def result(self) -> Any:
        assert self.answered.wait(TIMEOUT_SECONDS)
        [answer] = self.answers
        return answer


class Held:
    """An ``answer`` that waits at a gate and keeps the batches that it was given."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.gate = threading.Event()
        self.batches: list[list[Row]] = []

    def __call__(self, rows: list[Row]) -> None:
        self.batches.append(rows)
        self.entered.release()
        assert self.gate.wait(TIMEOUT_SECONDS)
        for row in rows:
            row.reply(row.value)


@contextmanager
def starting() -> Iterator[Callable[..., Batcher[Row]]]:
    """Yields what makes batchers of one thread, and closes them."""
    with ExitStack() as stack:

        def make(answer: Any, **fields: Any) -> Batcher[Row]:
            hooks = {name: fields.pop(name) for name in HOOKS if name in fields}
            batcher = Batcher(answer, BatcherConfig(**{"threads": 1, **fields}), **hooks)
            return stack.enter_context(closing(batcher))

        yield make


def submit(batcher: Batcher[Row], *rows: Row) -> None:
    for row in rows:
        batcher.submit(None, row)
