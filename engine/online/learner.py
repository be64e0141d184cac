"""The state that the log makes: events in, in their order, a model out; the same log, the same model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import structlog
from numpy.typing import NDArray

from recserve.engine.bundle.vocabulary import Vocabulary
from recserve.engine.online.config import FTRL, OnlineConfig
from recserve.engine.online.drift import Drift
from recserve.engine.online.features import ItemVectors
from recserve.engine.online.heads import FtrlHead, Head, LinearHead
from recserve.engine.online.users import Example, Users
from recserve.engine.state.state import LoggedEvent

log = structlog.get_logger("recserve.online")

# Examples between two looks at the drift, counted from the first one: every run looks at the same places.
CHUNK = 256


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A model and where in the log it stands: events up to ``applied_seq`` are in it, later ones are not.

    ``is_good``: it predicted well, so it is one to go back to.
    """

    applied_seq: int
    n_examples: int
    n_rollbacks: int
    is_good: bool
    drift: NDArray[np.float64]
    arrays: dict[str, NDArray[np.float64]]


class Learner:
    """Learns; :meth:`apply` and :meth:`restore` are called by one thread.

    ``on_snapshot`` gets a snapshot every so many examples, of a model that predicts well, and after each
    rollback.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        vectors: ItemVectors,
        config: OnlineConfig,
        on_snapshot: Callable[[Snapshot], None] = lambda snapshot: None,
    ) -> None:
        self.vectors = vectors
        self._vocabulary, self._config, self._on_snapshot = vocabulary, config, on_snapshot
        self.head: Head = (FtrlHead if config.algorithm == FTRL else LinearHead)(vectors, config)
        self.users = Users(config)
        # The last event that the users' state has, and the last one that the model has: after a restart the
        # users are followed from the start of the log, and nothing is learned twice.
        self.followed_seq = self.applied_seq = 0
        self.n_examples = self.n_rollbacks = 0
        self._drift = Drift(config.drift_tolerance)
        # What to go back to, None while the model has not been good since the last time.
        self._good: Snapshot | None = None

    @property
    def is_trusted(self) -> bool:
        """Whether slates should follow the model: it is young, or predicts as well as the mean click rate."""
        return not self._drift.is_bad

    def apply(self, events: Sequence[LoggedEvent], last_seq: int) -> None:
        """Takes the next events of the log, whose numbers end with ``last_seq``."""
        examples: list[tuple[int, Example]] = []
        for logged in events:
            example = self.users.follow(logged, self._vocabulary.index_of(logged.event.item_id))
            if example is not None and logged.seq > self.applied_seq:
                examples.append((logged.seq, example))
        while examples:
            n = CHUNK - self.n_examples % CHUNK
            self._learn(examples[:n])
            examples = examples[n:]
        self.followed_seq = last_seq
        self.applied_seq = max(self.applied_seq, last_seq)

    def snapshot(self) -> Snapshot:
        """Returns the model as it is."""
        return Snapshot(
            self.applied_seq,
            self.n_examples,
            self.n_rollbacks,
            self._drift.is_good,
            self._drift.state.copy(),
            self.head.arrays(),
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Goes on from a snapshot of a learner of the same bundle and settings."""
        self.applied_seq, self.n_examples = snapshot.applied_seq, snapshot.n_examples
        self.n_rollbacks = snapshot.n_rollbacks
        self._drift.state[:] = snapshot.drift
        self.head.load(snapshot.arrays)
        self._good = snapshot if snapshot.is_good else None

    def _learn(self, examples: Sequence[tuple[int, Example]]) -> None:
        some = [example for _, example in examples]
        self._drift.add(self.head, some, self.head.learn(some))
        self.n_examples += len(some)
        self.applied_seq = examples[-1][0]
        if self.n_examples % CHUNK == 0:
            self._drift.end_chunk()
            self._look()

    def _look(self) -> None:
        before = self._good.n_examples if self._good else 0
        if self._drift.is_good and self.n_examples - before >= self._config.snapshot_examples:
            self._good = self.snapshot()
            self._on_snapshot(self._good)
        elif self._drift.is_bad and self._good is not None:
            self._roll_back(self._good)
            # Should it be bad too, the world has changed: then it learns on, and slates wait.
            self._good = None
            self._on_snapshot(self.snapshot())

    def _roll_back(self, good: Snapshot) -> None:
        """Takes a good model; what was learned since stays forgotten."""
        log.warning(
            "online model rolled back: it predicts worse than the mean click rate",
            examples=self.n_examples,
            back_to=good.n_examples,
        )
        self.n_rollbacks += 1
        self.head.load(good.arrays)
        self._drift.forget()
