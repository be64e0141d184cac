"""One life of the process that writes a log, seen from its server: what it is asked, and what it tells."""

import itertools
import multiprocessing
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from copy import copy
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, NamedTuple

import structlog

from recserve.engine.state.config import StateConfig
from recserve.engine.state.event_log import resolving
from recserve.errors import RecserveError, Unavailable

log = structlog.get_logger("recserve.state")

CONTEXT = multiprocessing.get_context("spawn")
PROCESS_NAME = "process of the event log"


class Opened(NamedTuple):
    """The first message of the process: ``secret`` is that of the log's pseudonyms."""

    durability: str
    secret: bytes


class WritingProcess:
    """Starts when it is made, and ends with the thread that made it, if not before (Linux).

    One thread reads :attr:`told`; all may :meth:`ask`.
    """

    def __init__(self, config: StateConfig, run: Callable[[StateConfig, Connection], None]) -> None:
        """``run``: what it does with its end of the pipe; :class:`Opened`, or an error, comes first."""
        self._pipe, theirs = multiprocessing.Pipe()
        self._process = CONTEXT.Process(target=run, args=(config, theirs), name="recserve-log")
        self._process.start()
        theirs.close()
        # What it tells, (what, arguments), until it has ended.
        self.told = self._read()
        # Why nobody is let in any more; None while they are.
        self.refusal: RecserveError | None = None
        self._numbers = itertools.count()
        self._waiting: dict[int, Callable[[Any], None]] = {}
        # A full pipe must hold up nobody who asks.
        self._to_send: SimpleQueue[bytes | None] = SimpleQueue()
        self._sender = threading.Thread(target=self._send, name="recserve-log-sender", daemon=True)
        self._sender.start()

    @property
    def n_waiting(self) -> int:
        """Calls that have no answer yet."""
        return len(self._waiting)

    def opened(self) -> Opened:
        """Returns its first message; raises the error that it may be."""
        try:
            opened: Opened | RecserveError = self._pipe.recv()
        except (EOFError, OSError):
            raise self.died() from None
        if isinstance(opened, RecserveError):
            raise opened
        return opened

    def ask(self, name: str, arguments: tuple[Any, ...], done: Callable[[Any], None]) -> None:
        """Calls a method of the state there; ``done`` gets the answer, or the error, on the reading thread.

        Raises :attr:`refusal`; then nothing is asked.
        """
        if (refusal := self.refusal) is not None:
            # A copy: one that is raised again and again would keep the frames of all who asked.
            raise copy(refusal)
        number = next(self._numbers)
        message = pickle.dumps((number, name, arguments), pickle.HIGHEST_PROTOCOL)
        self._waiting[number] = done
        # Looked at after the entry was made: who ends the waiting ones sees it, or it sees the end.
        if (refusal := self.refusal) is not None and self._waiting.pop(number, None) is not None:
            raise copy(refusal)
        self._to_send.put(message)

    def asked(self, name: str, *arguments: Any) -> Future[Any]:
        """Does what :meth:`ask` does; the future gets the answer, or the error."""
        future: Future[Any] = Future()
        self.ask(name, arguments, resolving(future))
        return future

    def answer(self, number: int, answer: Any) -> None:
        """Gives an answer that was told to who waits for it."""
        _give(self._waiting.pop(number), answer)

    def finish(self, refusal: RecserveError) -> None:
        """Lets it end after what it was asked; from now on everybody gets ``refusal``."""
        self.refusal = refusal
        self._to_send.put(None)

    def kill(self) -> None:
        """Ends it now."""
        self._process.kill()

    def end(self, refusal: RecserveError) -> None:
        """Gives who waits, and asks, ``refusal`` where there was none before; returns when it has ended."""
        error = self.refusal or refusal
        self.finish(error)
        # Empty, also by who takes theirs back.
        with suppress(KeyError):
            while True:
                _, done = self._waiting.popitem()
                _give(done, error)
        self._process.join()
        self._sender.join()
        self._pipe.close()

    def died(self) -> Unavailable:
        """Returns how it ended when nobody had asked it to."""
        self._process.join()
        return Unavailable(
            PROCESS_NAME, found=f"dead (exit code {self._process.exitcode})", expected="running"
        )

    def _send(self) -> None:
        # Who reads finds the end of the process, and tells everybody.
        with suppress(OSError):
            while (message := self._to_send.get()) is not None:
                self._pipe.send_bytes(message)
            self._pipe.send(None)

    def _read(self) -> Iterator[tuple[str, tuple[Any, ...]]]:
        while True:
            try:
                messages = self._pipe.recv()
            except (EOFError, OSError):
                return
            yield from messages


def _give(done: Callable[[Any], None], answer: Any) -> None:
    try:
        done(answer)
    except Exception:
        # Others wait for theirs.
        log.exception("an answer of the event log was lost")
