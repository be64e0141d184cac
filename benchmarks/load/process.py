"""The generator's processes: each sends its share and hands back what it saw."""

import gc
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection as Pipe
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recserve.benchmarks.load.connection import Connection
from recserve.benchmarks.load.http1 import JsonConnection
from recserve.benchmarks.load.http2 import GrpcConnection
from recserve.benchmarks.load.messages import STAGES, Workload, write_messages
from recserve.benchmarks.load.options import Asked, Client, Pace, Target
from recserve.benchmarks.load.schedule import Schedule, schedules, share
from recserve.benchmarks.load.sending import Journal, Sender
from recserve.engine.traces import FEEDBACK
from recserve.errors import CheckFailed, RecserveError, Unavailable

START_TIMEOUT_SECONDS = 60.0
# Between the last process being ready and the first request.
HEAD_START_SECONDS = 0.1
MAX_KEPT_REPLIES = 20_000
KEEP_EVERY_CLOSED = 10


@dataclass(slots=True)
class Samples:
    """What happened, in the order of due times of each process: seconds since the start, gRPC code, kind.

    ``stages``: entry number → nanoseconds by stage, of a systematic sample of the replies; ``unreadable``
    replies of it were no slates.
    ``busy``: share of a core that the busiest process took.
    """

    due: NDArray[np.float64]
    noticed: NDArray[np.float64]
    sent: NDArray[np.float64]
    done: NDArray[np.float64]
    code: NDArray[np.int16]
    kind: NDArray[np.str_] = field(default_factory=lambda: np.empty(0, np.str_))
    stages: dict[int, dict[str, int]] = field(default_factory=dict)
    unreadable: int = 0
    reconnects: int = 0
    busy: float = 0.0


@dataclass(frozen=True, slots=True)
class Task:
    """Everything that one process needs."""

    target: Target
    asked: Asked
    workload: Workload
    schedule: Schedule
    connections: int
    timeout: float
    keep_every: int
    read: Callable[[bytes], dict[str, int]]


def run_processes(
    target: Target,
    asked: Asked,
    workload: Workload,
    pace: Pace,
    client: Client,
    on_tick: Callable[[float], None] = lambda seconds: None,
    read: Callable[[bytes], dict[str, int]] | None = None,
) -> Samples:
    """Runs the load from ``client.processes`` processes; ``on_tick`` is told the seconds since the start.

    ``read``: looks at every reply, instead of at the stage times of a sample, and raises ValueError for one
    that counts as unreadable. Raises :class:`Unavailable` where nobody listens.
    """
    keep_every = max(1, int(pace.rate * pace.duration / MAX_KEPT_REPLIES)) if pace.rate else KEEP_EVERY_CLOSED
    if read is not None:
        keep_every = 1
    context = multiprocessing.get_context("spawn")
    pipes: list[Pipe] = []
    processes = []
    n = client.processes
    if pace.concurrency:
        n = min(n, pace.concurrency)
    try:
        for i, schedule in enumerate(schedules(pace, n, workload.times)):
            own, connections = workload.part(i, n), share(client.connections, i, n)
            reader = read or STAGES[target.scheme]
            task = Task(target, asked, own, schedule, connections, pace.timeout, keep_every, reader)
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(task, theirs), daemon=True)
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        for pipe in pipes:
            _receive(pipe, START_TIMEOUT_SECONDS)
        start = time.monotonic() + HEAD_START_SECONDS
        for pipe in pipes:
            pipe.send(start)
        on_tick(0.0)
        while not all(pipe.poll(1.0 / len(pipes)) for pipe in pipes):
            on_tick(time.monotonic() - start)
        return join([_receive(pipe, None) for pipe in pipes])
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _receive(pipe: Pipe, seconds: float | None) -> Any:
    if seconds is not None and not pipe.poll(seconds):
        raise CheckFailed("process of the generator", found=f"silent for {seconds:g} s", expected="ready")
    try:
        said = pipe.recv()
    except EOFError:
        raise CheckFailed("process of the generator", found="dead", expected="an answer; see above") from None
    if isinstance(said, tuple):
        kind, name, found, expected, cure = said
        raise kind(name, found=found, expected=expected, cure=cure)
    return said


def work(task: Task, pipe: Pipe) -> None:
    """What a process of the generator does."""
    try:
        sender = _new_sender(task)
        pipe.send("ready")
        start = pipe.recv()
        gc.collect()
        gc.disable()
        cpu, began = time.process_time(), time.monotonic()
        journal = sender.run(start)
        busy = (time.process_time() - cpu) / max(time.monotonic() - began, 1e-9)
        pipe.send(to_samples(journal, task.workload, task.read, busy))
    except RecserveError as error:
        pipe.send((type(error), error.name, error.found, error.expected, error.cure))


def _new_sender(task: Task) -> Sender:
    target = task.target
    messages: Any = write_messages(target, task.asked, task.workload)
    kind: Any = JsonConnection if target.scheme == "http" else GrpcConnection

    def connect() -> Connection:
        connection: Connection = kind(target.host, target.port, messages, task.timeout, task.asked.headers)
        return connection

    order = task.workload.order.tolist()
    try:
        return Sender(task.schedule, connect, task.connections, order, task.timeout, task.keep_every)
    except OSError as error:
        raise Unavailable(
            f"target {target}", found=error.strerror or "not reachable", expected="a server that listens"
        ) from error


def to_samples(
    journal: Journal, workload: Workload, read_stages: Callable[[bytes], dict[str, int]], busy: float
) -> Samples:
    """Turns a journal into arrays and reads the stage times off the kept replies."""
    stages: dict[int, dict[str, int]] = {}
    unreadable = 0
    kinds = workload.kinds(len(journal.due))
    for number, reply in journal.replies.items():
        if kinds[number] == FEEDBACK:
            continue  # Its answer is no slate.
        try:
            stages[number] = read_stages(reply)
        except ValueError:
            unreadable += 1
    return Samples(
        np.array(journal.due),
        np.array(journal.noticed),
        np.array(journal.sent),
        np.array(journal.done),
        np.array(journal.code, np.int16),
        kinds,
        stages,
        unreadable,
        journal.reconnects,
        busy,
    )


def join(parts: list[Samples]) -> Samples:
    """Puts the samples of several processes behind each other."""
    offsets = np.cumsum([0, *(len(part.due) for part in parts)]).tolist()
    arrays = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("due", "noticed", "sent", "done", "code", "kind")
    }
    stages = {
        number + offset: times
        for part, offset in zip(parts, offsets, strict=False)
        for number, times in part.stages.items()
    }
    return Samples(
        **arrays,
        stages=stages,
        unreadable=sum(part.unreadable for part in parts),
        reconnects=sum(part.reconnects for part in parts),
        busy=max(part.busy for part in parts),
    )
