"""The sending loop of one process: what is due goes out, what comes back is timed.

Three times are taken of each request: when it was *due*, when this loop *noticed* (a late notice is the
client's fault), and when it was *sent* (a wait for a free stream or connection is the target's). Latency is
from due to done; so a stalled server pays for the requests that it kept from being asked.
"""

import math
import select
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from recserve.benchmarks.load.connection import DEADLINE_EXCEEDED, UNAVAILABLE, Connection
from recserve.benchmarks.load.schedule import Schedule

PENDING = -1
MAX_WAIT_SECONDS = 0.05
RECONNECT_SECONDS = 0.1


@dataclass(slots=True)
class Journal:
    """What happened, an entry per request: seconds since the start, gRPC code; kept replies by number."""

    due: list[float] = field(default_factory=list)
    noticed: list[float] = field(default_factory=list)
    sent: list[float] = field(default_factory=list)
    done: list[float] = field(default_factory=list)
    code: list[int] = field(default_factory=list)
    replies: dict[int, bytes] = field(default_factory=dict)
    reconnects: int = 0

    def open(self, due: float, noticed: float) -> int:
        """Begins an entry and returns its number."""
        self.due.append(due)
        self.noticed.append(noticed)
        self.sent.append(math.nan)
        self.done.append(math.nan)
        self.code.append(PENDING)
        return len(self.due) - 1

    def close(self, number: int, done: float, code: int) -> None:
        """Ends an entry."""
        self.done[number] = done
        self.code[number] = code


class Sender:
    """Runs one schedule over a set of connections, in the thread that calls :meth:`run`."""

    def __init__(
        self,
        schedule: Schedule,
        connect: Callable[[], Connection],
        n_connections: int,
        messages: Sequence[int],
        timeout: float,
        keep_every: int,
    ) -> None:
        """``messages``: the message number of each request, repeated when they end.

        ``keep_every``: of so many replies one is kept. Raises OSError where nobody listens.
        """
        self._schedule = schedule
        self._connect = connect
        self._messages = messages
        self._timeout = timeout
        self._keep_every = keep_every
        self._n_connections = n_connections
        self._free: deque[Connection] = deque()
        self._by_fd: dict[int, Connection] = {}
        self._dirty: list[Connection] = []
        self._backlog: deque[int] = deque()
        self._flying: dict[int, Connection] = {}
        # Their numbers in the order in which they were noticed; those that have ended leave it later.
        self._order: deque[int] = deque()
        self._poll = select.epoll()
        self._lost = 0
        self._next_try = 0.0
        self.journal = Journal()
        for _ in range(n_connections):
            self._add(connect())

    def run(self, start: float) -> Journal:
        """Sends from the moment ``start`` of time.monotonic until the schedule and all answers have ended."""
        self._start = start
        try:
            while True:
                now = time.monotonic() - start
                due = self._take_due(now)
                self._send_backlog()
                self._flush()
                if not self._flying and not self._backlog and due == math.inf:
                    return self.journal
                self._wait(due, now)
                self._expire(time.monotonic() - start)
        finally:
            for connection in self._by_fd.values():
                connection.close()
            self._poll.close()

    def _take_due(self, now: float) -> float:
        schedule = self._schedule
        while (due := schedule.next_due()) <= now:
            self._backlog.append(self.journal.open(schedule.pop(), now))
        return due

    def _send_backlog(self) -> None:
        backlog, free, messages = self._backlog, self._free, self._messages
        while backlog:
            number = backlog[0]
            message = messages[number % len(messages)]
            for _ in range(len(free)):
                if free[0].can_send(message):
                    break
                free.rotate(-1)
            else:
                return
            backlog.popleft()
            connection = free[0]
            connection.send(number, message, number % self._keep_every == 0)
            self.journal.sent[number] = time.monotonic() - self._start
            self._flying[number] = connection
            self._order.append(number)
            self._dirty.append(connection)
            free.rotate(-1)

    def _flush(self) -> None:
        for connection in set(self._dirty):
            if connection.is_open and not connection.flush():
                self._poll.modify(connection.sock, select.EPOLLIN | select.EPOLLOUT)
        self._dirty.clear()

    def _wait(self, due: float, now: float) -> None:
        if (oldest := self._oldest()) is not None:
            due = min(due, self.journal.noticed[oldest] + self._timeout)
        seconds = min(max(due - now, 0.0), MAX_WAIT_SECONDS)
        # select waits to the microsecond, epoll itself to the millisecond.
        if select.select([self._poll], [], [], seconds)[0]:
            for fd, events in self._poll.poll(0):
                self._serve(self._by_fd[fd], events)
        if self._lost:
            self._reconnect()

    def _serve(self, connection: Connection, events: int) -> None:
        if events & select.EPOLLOUT and connection.flush():
            self._poll.modify(connection.sock, select.EPOLLIN)
        if events & ~select.EPOLLOUT:
            ended = connection.receive()
            now = time.monotonic() - self._start
            for one in ended:
                if self._flying.pop(one.tag, None) is not None:
                    self._close(one.tag, now, one.code)
                    if one.reply:
                        self.journal.replies[one.tag] = one.reply
            # Acknowledgements of settings and pings.
            self._dirty.append(connection)
        if not connection.is_open:
            self._drop(connection)

    def _close(self, number: int, now: float, code: int) -> None:
        self.journal.close(number, now, code)
        self._schedule.answered(now)

    def _oldest(self) -> int | None:
        order = self._order
        while order and order[0] not in self._flying:
            order.popleft()
        return order[0] if order else None

    def _expire(self, now: float) -> None:
        noticed, timeout = self.journal.noticed, self._timeout
        while (number := self._oldest()) is not None and noticed[number] + timeout <= now:
            connection = self._flying.pop(number)
            connection.give_up(number)
            self._dirty.append(connection)
            self._close(number, now, DEADLINE_EXCEEDED)
            if not connection.is_open:
                self._drop(connection)
        code = DEADLINE_EXCEEDED if self._free else UNAVAILABLE
        while self._backlog and noticed[self._backlog[0]] + timeout <= now:
            self._close(self._backlog.popleft(), now, code)

    def _add(self, connection: Connection) -> None:
        self._by_fd[connection.sock.fileno()] = connection
        self._poll.register(connection.sock, select.EPOLLIN)
        self._free.append(connection)
        self._dirty.append(connection)

    def _drop(self, connection: Connection) -> None:
        fd = next(fd for fd, known in self._by_fd.items() if known is connection)
        del self._by_fd[fd]
        self._free.remove(connection)
        if connection.sock.fileno() >= 0:
            self._poll.unregister(fd)
        connection.close()
        self._lost += 1

    def _reconnect(self) -> None:
        now = time.monotonic()
        if now < self._next_try:
            return
        try:
            while self._lost:
                self._add(self._connect())
                self._lost -= 1
                self.journal.reconnects += 1
        except OSError:
            # Nobody listens now: the requests that are due fail by their deadline.
            self._next_try = now + RECONNECT_SECONDS
