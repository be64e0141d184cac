"""``recserve serve --state`` as a process under ingest, killed at any moment: what it acknowledged is there.

Run as a program for many kills: ``python -m tests.engine.server.killing BUNDLE FOLDER --kills 1000``. Every
``--kills-per-log`` of them a new log begins: each kill is followed by a look at the whole log.
"""

import argparse
import contextlib
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from recserve.engine.feedback_client import FeedbackClient
from recserve.engine.retry import NO_RETRY
from recserve.engine.state.config import StateConfig
from recserve.engine.state.events import Event
from recserve.engine.state.state import read_log
from recserve.engine.wire.status import RemoteError
from recserve.errors import CheckFailed

TIMEOUT_SECONDS = 60.0
N_CLIENTS = 3


@dataclass
class Ingest:
    """One caller: numbers its events, sends the batch again that was not acknowledged, notes the rest."""

    name: str
    acknowledged: list[str] = field(default_factory=list)
    unsure: list[Event] = field(default_factory=list)
    n_made: int = 0

    def run(self, address: str, rng: random.Random) -> None:
        """Sends until the server is gone."""
        with FeedbackClient(address, timeout=TIMEOUT_SECONDS, retry=NO_RETRY) as client:
            while True:
                # Some come twice in one call, and what may have been kept before the kill comes again.
                batch = self.unsure or [self._make() for _ in range(rng.choice((1, 1, 8, 64)))]
                self.unsure = batch
                try:
                    recorded = client.record([*batch, *batch[:1]])
                except RemoteError:
                    return
                if recorded.refused or recorded.n_stored + len(recorded.duplicates) != len(batch) + 1:
                    raise CheckFailed("reply", found=str(recorded), expected="each event stored or known")
                self.acknowledged += [event.event_id for event in batch]
                self.unsure = []

    def _make(self) -> Event:
        self.n_made += 1
        return Event(
            user_id=f"{self.name}-{self.n_made % 7}",
            item_id=f"i{self.n_made % 50}",
            event_id=f"{self.name}/{self.n_made:09d}",
            timestamp=1_750_000_000 + self.n_made,
        )


@contextlib.contextmanager
def serving(
    bundle: Path, state: str, log: Path, *arguments: str
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Runs a server over a log; yields the process and its address."""
    command = [sys.executable, "-m", "recserve.engine.cli", "serve", str(bundle), "--port", "0"]
    with (
        log.open("a") as errors,
        subprocess.Popen(
            [*command, "--state", state, *arguments], stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            if not address:
                raise CheckFailed("server", found=f"ended, see {log}", expected="serving")
            yield process, address
        finally:
            process.kill()


def kill_often(bundle: Path, folder: Path, *, kills: int, seed: int) -> int:
    """Kills servers under ingest; checks the log after each; returns how many events were acknowledged."""
    rng = random.Random(seed)
    state = f"sqlite:///{folder}/events"
    callers = [Ingest(f"c{i}") for i in range(N_CLIENTS)]
    for _ in range(kills):
        with serving(bundle, state, folder / "server.log") as (process, address):
            threads = [
                threading.Thread(target=caller.run, args=(address, random.Random(rng.random())))
                for caller in callers
            ]
            for thread in threads:
                thread.start()
            time.sleep(rng.uniform(0.0, 0.4))
            process.kill()
            for thread in threads:
                thread.join()
        check(state, callers)
    return sum(len(caller.acknowledged) for caller in callers)


def check(state: str, callers: list[Ingest]) -> None:
    """Raises :class:`CheckFailed` unless the log has what was acknowledged, once, in each caller's order."""
    logged: dict[str, list[str]] = {caller.name: [] for caller in callers}
    for event in read_log(StateConfig(url=state)):
        logged[event.event.event_id.partition("/")[0]].append(event.event.event_id)
    for caller in callers:
        # The batch under way at the kill may be there as a whole or not at all.
        unsure = [event.event_id for event in caller.unsure]
        if logged[caller.name] not in (caller.acknowledged, caller.acknowledged + unsure):
            raise CheckFailed(
                f"events of {caller.name}",
                found=f"{len(logged[caller.name])} in the log",
                expected=f"the {len(caller.acknowledged)} acknowledged ones (and {len(unsure)} under way)",
            )


def main() -> None:
    """Kills as often as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--kills-per-log", type=int, default=50)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    n_kills = n_events = 0
    while n_kills < options.kills:
        kills = min(options.kills_per_log, options.kills - n_kills)
        folder = options.folder / f"after-{n_kills}"
        folder.mkdir(parents=True)
        n_events += kill_often(options.bundle, folder, kills=kills, seed=options.seed + n_kills)
        n_kills += kills
        sys.stdout.write(f"{n_kills} kills, {n_events} events acknowledged, none lost, none twice\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
