"""Servers as processes of their own, from their start to their end, and the CPU time that they took."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from recserve.errors import CheckFailed

STOP_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Running:
    """A server that is ready: ``address`` is the first line that it printed, ``url`` the second if any."""

    process_id: int
    address: str
    url: str = ""

    def cpu_seconds(self) -> float:
        """CPU time of the process and all below it so far, those that have ended left out (Linux)."""
        ticks, parents = {}, {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                # After the name, which may hold anything: state, parent, …, user and system time.
                fields = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
                parents[int(folder.name)] = int(fields[1])
                ticks[int(folder.name)] = int(fields[11]) + int(fields[12])
        own = {self.process_id}
        for _ in range(len(parents)):
            grown = own | {child for child, parent in parents.items() if parent in own}
            if grown == own:
                break
            own = grown
        return sum(ticks.get(one, 0) for one in own) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def running(
    name: str,
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    python: str = sys.executable,
    with_url: bool = False,
) -> Iterator[Running]:
    """Runs ``python -m COMMAND``, or a script; yields it once it said its address, and ends it.

    ``with_url``: it says another line. Raises :class:`CheckFailed` when it ends before. SIGTERM ends this
    program in order meanwhile, so that no server stays behind.
    """
    program = [python, *(command if command[0].endswith(".py") else ["-m", *command])]
    with (
        _leaving_in_order(),
        subprocess.Popen(
            program,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **environment},
            # A group of its own: some servers leave children behind when only they are told to stop.
            start_new_session=True,
        ) as process,
    ):
        try:
            if process.stdout is None:
                raise CheckFailed(name, found="without stdout", expected="a pipe")
            lines = [process.stdout.readline().strip() for _ in range(1 + with_url)]
            if not all(lines):
                raise CheckFailed(name, found="ended", expected="running")
            yield Running(process.pid, *lines)
        finally:
            for number in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(STOP_SECONDS)


@contextlib.contextmanager
def _leaving_in_order() -> Iterator[None]:
    """Lets SIGTERM raise SystemExit, where nobody handles it and this is the thread that could."""
    if threading.current_thread() is not threading.main_thread() or (
        signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
