"""``recserve serve`` with a fault built in: ``python -m tests.engine.server.faulty FAULT FLAG serve …``.

The fault is there while the file FLAG exists, so that a test can switch it on and off in a running process.
"""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
HOUR = 3600.0


def main(fault: str, flag: Path, arguments: list[str]) -> None:
    """Builds the fault in and runs the command line."""
    from recserve.engine import cli

    FAULTS[fault](flag.exists)
    cli.main(arguments)


def around(owner: Any, name: str, is_on: Callable[[], bool], fault: Callable[[], None]) -> None:
    """Has ``fault`` happen before each call of ``owner.name`` while it is on."""
    original = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if is_on():
            fault()
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)


def inference_hangs(is_on: Callable[[], bool]) -> None:
    """ONNX Runtime does not come back, whatever it is told."""
    from recserve.engine import session

    around(session, "infer", is_on, threading.Event().wait)


def inference_takes_long(is_on: Callable[[], bool]) -> None:
    """ONNX Runtime takes a tenth of a second more."""
    from recserve.engine import session

    around(session, "infer", is_on, lambda: time.sleep(0.1))


def inference_fails(is_on: Callable[[], bool]) -> None:
    """ONNX Runtime raises."""
    from recserve.engine import session

    def fail() -> None:
        raise RuntimeError("/secret/path of the runtime")

    around(session, "infer", is_on, fail)


def threads_die(is_on: Callable[[], bool]) -> None:
    """What runs a batch ends its thread."""
    from recserve.engine import session

    def die() -> None:
        raise SystemExit

    around(session, "infer", is_on, die)


def loop_blocks(is_on: Callable[[], bool]) -> None:
    """Something on the thread that receives calls takes half a second."""
    from recserve.engine.server.chain import Chain

    around(Chain, "dispatch", is_on, lambda: time.sleep(0.5))


def clock_jumps(is_on: Callable[[], bool]) -> None:
    """The wall clock goes an hour ahead, back, and to the year 2099, at each look another way."""
    true_time, jumps = time.time, [HOUR, -HOUR, 73 * 365.25 * 24 * HOUR, 0.0]

    def wrong_time() -> float:
        if is_on():
            jumps.append(jumps.pop(0))
            return true_time() + jumps[0]
        return true_time()

    time.time = wrong_time


def peers_vanish(is_on: Callable[[], bool]) -> None:
    """No fault of the server's: it asks after a second, not a minute, whether its peers are still there."""
    from recserve.engine.server.transports import grpcio, native

    grpcio.PING_AFTER_SECONDS = grpcio.PING_TIMEOUT_SECONDS = native.KEEPALIVE_SECONDS = 1


FAULTS: dict[str, Callable[[Callable[[], bool]], None]] = {
    "inference-hangs": inference_hangs,
    "inference-takes-long": inference_takes_long,
    "inference-fails": inference_fails,
    "threads-die": threads_die,
    "loop-blocks": loop_blocks,
    "clock-jumps": clock_jumps,
    "peers-vanish": peers_vanish,
}


class Faulty:
    """A running server: its ``process``, gRPC ``address`` and ``urls``; ``fault`` is on while it is set."""

    def __init__(self, process: "subprocess.Popen[str]", lines: list[str], flag: Path, log: Path) -> None:
        self.process = process
        self.address, self.urls = lines[0], lines[1:]
        self._flag = flag
        self._log = log

    def fault(self, on: bool) -> None:
        """Switches it."""
        if on:
            self._flag.touch()
        else:
            self._flag.unlink(missing_ok=True)

    def log(self) -> str:
        """What the server has written so far."""
        return self._log.read_text()


@contextlib.contextmanager
def faulty(fault: str, folder: Path, *arguments: object, **environment: str) -> Iterator[Faulty]:
    """Runs ``serve`` with ``arguments`` and the fault, off at first; ``folder`` is for its files.

    ``environment``: settings, as RECSERVE__BATCHER__STUCK_SECONDS.
    """
    flag, log = folder / "fault", folder / "server.log"
    command = [
        sys.executable,
        "-m",
        "tests.engine.server.faulty",
        fault,
        flag,
        "serve",
        *arguments,
        "--port",
        0,
    ]
    with (
        log.open("w") as errors,
        subprocess.Popen(
            list(map(str, command)),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=ROOT,
            env={**os.environ, **environment},
        ) as process,
    ):
        try:
            assert process.stdout is not None
            n_lines = 2 if "--http-port" in arguments else 1
            lines = [process.stdout.readline().strip() for _ in range(n_lines)]
            assert lines[0], log.read_text()
            yield Faulty(process, lines, flag, log)
        finally:
            process.kill()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
