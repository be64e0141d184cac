"""A process that records events and is killed at any moment: what its log acknowledged is there.

The same as :mod:`tests.engine.server.killing` without a server around the log, so that many kills take little
time: ``python -m tests.engine.state.killing FOLDER --kills 1000``. This process has one thread and forks;
each child opens the log, records from several threads, and tells by a pipe what it is about to record and
what was acknowledged.
"""

import argparse
import os
import random
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from recserve.engine.state.config import StateConfig
from recserve.engine.state.events import Event
from recserve.engine.state.state import State, open_state, read_log
from recserve.errors import CheckFailed

N_CALLERS = 3
SENT, ACKNOWLEDGED, READY = "s", "a", "r"
SIZES = (1, 1, 8, 64)


@dataclass
class Caller:
    """How many events one thread has sent so far, numbered from 1, and how many of them were acknowledged."""

    name: str
    sent: int = 0
    acknowledged: int = 0


def event_of(caller: str, number: int) -> Event:
    """Returns the event that a caller records as its ``number``-th."""
    return Event(
        user_id=f"{caller}-{number % 7}",
        item_id=f"i{number % 50}",
        event_id=f"{caller}/{number}",
        timestamp=1_750_000_000 + number,
    )


def ingest(state: State, caller: Caller, rng: random.Random, pipe: int) -> None:
    """Records for ever, first again what was not acknowledged before the last kill."""
    while True:
        if caller.sent == caller.acknowledged:
            caller.sent += rng.choice(SIZES)
        events = [event_of(caller.name, n) for n in range(caller.acknowledged + 1, caller.sent + 1)]
        os.write(pipe, f"{SENT} {caller.name} {caller.sent}\n".encode())
        outcome = state.record(events)
        if outcome.refused or outcome.n_stored + len(outcome.duplicates) != len(events):
            os.write(pipe, f"{outcome}\n".encode())
            os._exit(1)
        os.write(pipe, f"{ACKNOWLEDGED} {caller.name} {caller.sent}\n".encode())
        caller.acknowledged = caller.sent


def be_killed(url: str, callers: list[Caller], rng: random.Random, pipe: int) -> None:
    """The life of a child."""
    state = open_state(StateConfig(url=url))
    state.load()
    os.write(pipe, f"{READY}\n".encode())
    for caller in callers:
        arguments = (state, caller, random.Random(rng.random()), pipe)
        threading.Thread(target=ingest, args=arguments).start()


def kill_once(url: str, callers: list[Caller], rng: random.Random) -> None:
    """Starts a child, kills it, and brings ``callers`` up to what it told."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        be_killed(url, callers, rng, writing)
        signal.pause()
    os.close(writing)
    with os.fdopen(reading) as lines:
        if (first := lines.readline()) != f"{READY}\n":
            raise CheckFailed("process", found=first or "ended", expected="recording")
        time.sleep(rng.uniform(0.0, 0.15))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        by_name = {caller.name: caller for caller in callers}
        for line in lines:
            kind, name, number = line.split()
            if kind == SENT:
                by_name[name].sent = int(number)
            else:
                by_name[name].acknowledged = int(number)


def check(url: str, callers: list[Caller]) -> None:
    """Raises :class:`CheckFailed` unless the log has what was acknowledged, once, in each caller's order."""
    logged: dict[str, list[int]] = {caller.name: [] for caller in callers}
    for event in read_log(StateConfig(url=url)):
        name, _, number = event.event.event_id.partition("/")
        logged[name].append(int(number))
    for caller in callers:
        # The call under way at the kill may be there as a whole or not at all.
        possible = [list(range(1, n + 1)) for n in (caller.acknowledged, caller.sent)]
        if logged[caller.name] not in possible:
            raise CheckFailed(
                f"events of {caller.name}",
                found=f"{len(logged[caller.name])} in the log",
                expected=f"1 to {caller.acknowledged} (or {caller.sent}) in order",
            )


def kill_often(folder: Path, *, kills: int, seed: int) -> int:
    """Kills writers of one log; returns how many events were acknowledged."""
    rng, url = random.Random(seed), f"sqlite:///{folder}/events"
    callers = [Caller(f"c{i}") for i in range(N_CALLERS)]
    for _ in range(kills):
        kill_once(url, callers, rng)
        check(url, callers)
    return sum(caller.acknowledged for caller in callers)


def main() -> None:
    """Kills as often as the command line says, with a new log after every 50 kills."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    n_events = 0
    for n_before in range(0, options.kills, 50):
        folder = options.folder / f"after-{n_before}"
        folder.mkdir(parents=True)
        kills = min(50, options.kills - n_before)
        n_events += kill_often(folder, kills=kills, seed=options.seed + n_before)
    sys.stdout.write(f"{options.kills} kills, {n_events} events acknowledged, none lost, none twice\n")


if __name__ == "__main__":
    main()
