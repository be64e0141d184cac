"""Two bundles on what came after both: the same histories, the same held-out events, the real engine."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recserve.engine.engine import Engine
from recserve.engine.types import Request
from recserve.training.data import Dataset
from recserve.training.data.columns import ITEM_ID, TIMESTAMP, USER_ID
from recserve.training.metrics import Estimate, bootstrap, ndcg

K = 10
MAX_HISTORY = 1000
BATCH = 64


@dataclass(frozen=True, slots=True)
class Case:
    """A user of the newest slice: what they did before, and the items that they had not had, in it."""

    history: tuple[str, ...]
    timestamps: tuple[int, ...]
    targets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Contest:
    """NDCG@10 of both, and by how much the new one is better, over users."""

    n_users: int
    serving: float
    new: float
    gain: Estimate

    @property
    def is_won(self) -> bool:
        """Whether the new one is better beyond chance: the 95 % interval of the gain is above 0."""
        return self.gain.low > 0


def cases(known: Dataset, newest: pl.DataFrame) -> list[Case]:
    """Returns the users of ``newest`` who did something new there, by id; histories are of ``known``."""
    row_of = {id_: row for row, id_ in enumerate(known.users[USER_ID].to_list())}
    item_ids, histories = known.items[ITEM_ID], known.histories()
    found = []
    for (user_id,), events in sorted(newest.group_by(USER_ID)):
        start, stop = histories.indptr[row_of[user_id] : row_of[user_id] + 2] if user_id in row_of else (0, 0)
        history = item_ids[histories.item_index[start:stop]].to_list()
        targets = dict.fromkeys(events.sort(TIMESTAMP)[ITEM_ID].to_list())
        wanted = tuple(item for item in targets if item not in set(history))
        if wanted:
            times = histories.timestamp[start:stop].tolist()
            found.append(Case(tuple(history[-MAX_HISTORY:]), tuple(times[-MAX_HISTORY:]), wanted))
    return found


def contest(serving: Path, new: Path, found: list[Case]) -> Contest:
    """Answers the cases from both bundles; the interval is that of paired differences, users drawn anew."""
    values = [np.concatenate(list(_ndcg(bundle, found))) for bundle in (serving, new)]
    gain = bootstrap(values[1] - values[0])
    return Contest(len(found), float(values[0].mean()), float(values[1].mean()), gain)


def _ndcg(bundle: Path, found: list[Case]) -> Iterator[NDArray[np.float64]]:
    with Engine.load(bundle) as engine:
        for start in range(0, len(found), BATCH):
            some = found[start : start + BATCH]
            slates = engine.recommend_many(
                Request(history=case.history, history_timestamps=case.timestamps, k=K) for case in some
            )
            ranks = []
            for case, slate in zip(some, slates, strict=True):
                rank = {item.item_id: float(item.rank) for item in slate.items}
                ranks.append(np.array([rank.get(target, np.inf) for target in case.targets]))
            yield ndcg(ranks, K)
