"""A small world for learners: items with vectors, users who like some, and the log of what they do.

Run as a program it records for ever: ``python -m tests.engine.online.world FOLDER ALGORITHM``.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from recserve.engine.bundle.vocabulary import Vocabulary
from recserve.engine.online.config import OnlineConfig
from recserve.engine.online.features import ItemVectors
from recserve.engine.online.learner import Learner
from recserve.engine.online.learner_thread import LearnerThread
from recserve.engine.online.snapshots import SnapshotFile
from recserve.engine.state.config import StateConfig
from recserve.engine.state.distant import AnyState
from recserve.engine.state.events import EVERY_PURPOSE, Event
from recserve.engine.state.state import LoggedEvent, open_state

N_ITEMS, DIM, K = 40, 8, 5
VECTORS = np.random.default_rng(1).standard_normal((N_ITEMS, DIM)).astype(np.float32)
# What everybody clicks, whoever they are.
LIKED = frozenset(range(0, N_ITEMS, 4))


def settings(algorithm: str = "ftrl", **fields: object) -> OnlineConfig:
    # Small enough that a kill finds snapshots.
    return OnlineConfig(**{"algorithm": algorithm, "snapshot_examples": 256, **fields})  # type: ignore[arg-type]


def new_learner(config: OnlineConfig) -> Learner:
    vocabulary = Vocabulary.build([f"i{item}" for item in range(N_ITEMS)])
    return Learner(vocabulary, ItemVectors(VECTORS), config)


def visits(seed: int, n: int, *, n_users: int = 30) -> Iterator[list[Event]]:
    """Yields what one visit records: a slate of impressions, then the clicks on it."""
    rng = np.random.default_rng(seed)
    for visit in range(n):
        user, slate = f"u{rng.integers(n_users)}", f"{seed}-{visit}"
        events = [
            Event(
                user_id=user,
                item_id=f"i{item}",
                action="impression",
                timestamp=1_750_000_000 + visit,
                event_id=f"{slate}/{rank}",
                slate_id=slate,
                rank=rank,
                context={"hour": str(visit % 3)},
                purposes=EVERY_PURPOSE,
            )
            for rank, item in enumerate(rng.choice(N_ITEMS, K, replace=False).tolist(), start=1)
        ]
        for shown in list(events):
            if rng.random() < (0.6 if int(shown.item_id[1:]) in LIKED else 0.05):
                events.append(
                    Event(
                        user_id=user,
                        item_id=shown.item_id,
                        timestamp=shown.timestamp,
                        event_id=f"{shown.event_id}!",
                        slate_id=slate,
                        purposes=EVERY_PURPOSE,
                    )
                )
        yield events


def logged(seed: int, n: int, **fields: int) -> list[LoggedEvent]:
    """Returns the log of visits, each some minutes after the one before."""
    events = [(visit, event) for visit, some in enumerate(visits(seed, n, **fields)) for event in some]
    return [LoggedEvent(seq, 300 * visit, event) for seq, (visit, event) in enumerate(events, start=1)]


def learn_all(learner: Learner, events: list[LoggedEvent], page: int = 1000) -> Learner:
    for start in range(0, len(events), page):
        some = events[start : start + page]
        learner.apply(some, some[-1].seq)
    return learner


def learn_from(state: AnyState, config: OnlineConfig, folder: Path) -> LearnerThread:
    file = SnapshotFile(folder / "model.npz")
    vocabulary = Vocabulary.build([f"i{item}" for item in range(N_ITEMS)])
    return LearnerThread(state, Learner(vocabulary, ItemVectors(VECTORS), config, file.write), file)


def state_of(learner: Learner) -> dict[str, bytes]:
    """Returns all that a model is, to the last bit."""
    snapshot = learner.snapshot()
    counts = (snapshot.applied_seq, snapshot.n_examples, snapshot.n_rollbacks)
    arrays = {name: array.tobytes() for name, array in snapshot.arrays.items()}
    return {"counts": repr(counts).encode(), "drift": snapshot.drift.tobytes(), **arrays}


def main() -> None:
    folder, algorithm, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    with open_state(StateConfig(url=f"sqlite:///{folder}/events")) as state:
        state.load()
        learn_from(state, settings(algorithm), folder)
        # Users enough that none has been shown everything that day.
        for n, events in enumerate(visits(seed, 1_000_000, n_users=10_000)):
            state.record(events)
            sys.stdout.write(f"{n}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
