"""What comes out of the pipeline: ranked items as arrays, and the slates that they become."""

import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recserve.engine.bundle import Bundle
from recserve.engine.explain.explained import Explained
from recserve.engine.explain.explanation import Explanation
from recserve.engine.online.stage import Choice
from recserve.engine.slate.quotas import Origins
from recserve.engine.types import Slate, SlateItem

# Not the system's own numbers for each batch: reading them gives the interpreter lock away.
_random = random.Random()
os.register_at_fork(after_in_child=_random.seed)


# Not frozen: one is made per request, and freezing triples the time that takes.
@dataclass(slots=True)
class Ranked:
    """The answer to one request before its items get names: items (n,) int32 of ``bundle``, best first.

    Rows of one batch share ``stage_ns``; an item of −1 is padding. ``choice``: of the online stage.
    """

    bundle: Bundle
    items: NDArray[np.int32]
    scores: NDArray[np.float32]
    variant: str
    source: str
    stage_ns: dict[str, int]
    warnings: tuple[str, ...]
    arm: str = ""
    degraded: tuple[str, ...] = ()
    next_page_token: str = ""
    # Of each of ``items``, where they come from several sources.
    origins: Origins | None = None
    slate_id: str = ""
    explained: Explained | None = None
    choice: Choice | None = None


def new_slate_ids(n: int) -> list[str]:
    """Returns ``n`` ids that no other slate has: 96 random bits of the batch, then the row."""
    batch = f"{_random.getrandbits(96):024x}"
    return [f"{batch}{row:x}" for row in range(n)]


def few_left(k: int, n_left: int) -> tuple[str, ...]:
    """Returns the warning that ``n_left`` items were left where ``k`` were asked for; none if enough."""
    return () if n_left >= k else (f"filter, rules and exclusions left {n_left} of {k} items",)


def slates(ranked: Sequence[Ranked]) -> list[Slate]:
    """Gives the items of each answer their names."""
    return [
        Slate(
            items=_items(answer),
            bundle_version=answer.bundle.manifest.bundle_version,
            variant=answer.variant,
            source=answer.source,
            stage_ns=answer.stage_ns,
            warnings=answer.warnings,
            arm=answer.arm,
            degraded=answer.degraded,
            slate_id=answer.slate_id,
            next_page_token=answer.next_page_token,
            propensities=propensities,
            explored=explored,
        )
        for answer, (propensities, explored) in zip(ranked, map(chances, ranked), strict=True)
    ]


def chances(answer: Ranked) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Returns the propensity of each item, and the ranks of the explored ones; nothing without a choice."""
    if answer.choice is None:
        return (), ()
    n = int((answer.items >= 0).sum())
    explored = np.flatnonzero(answer.choice.explored[:n]) + 1
    return tuple(answer.choice.propensities[:n].tolist()), tuple(explored.tolist())


def _items(answer: Ranked) -> tuple[SlateItem, ...]:
    explanations = None if answer.explained is None else answer.explained.explanations(answer.bundle)
    return slate_items(answer.bundle, answer.scores, answer.items, answer.origins, explanations)


def slate_items(
    bundle: Bundle,
    scores: NDArray[np.float32],
    items: NDArray[np.int32],
    origins: Origins | None = None,
    explanations: Sequence[Explanation] | None = None,
) -> tuple[SlateItem, ...]:
    """Turns one row of search results into slate items, leaving out the padding (−1)."""
    if len(items) and items[-1] < 0:
        valid = items >= 0
        scores, items = scores[valid], items[valid]
    ids = bundle.catalogue.vocabulary.ids(items)
    columns: list[Iterable[Any]] = [range(1, len(ids) + 1), ids, scores.tolist()]
    if origins is not None:
        columns += [origins.names, origins.scores.tolist()]
    if explanations is not None:
        columns += [] if origins is not None else [repeat(""), repeat(0.0)]
        columns.append(explanations)
    return tuple(map(SlateItem, *columns))
