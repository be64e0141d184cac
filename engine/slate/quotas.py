"""The union of candidates of several sources, in the order that their quotas give."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Source(NamedTuple):
    """What one source brings: items (n,) int32, best first, its own scores of them, and its quota."""

    name: str
    quota: float
    scores: NDArray[np.float32]
    items: NDArray[np.int32]


class Origins(NamedTuple):
    """Where candidates come from: items (n,) int32, the name of each one's source, that source's score."""

    items: NDArray[np.int32]
    names: list[str]
    scores: NDArray[np.float32]


def in_shares(
    origins: Origins, scores: NDArray[np.float32], items: NDArray[np.int32]
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Returns ``scores`` and ``items`` (n,), those of ``origins`` in a new order, by places of their sources.

    The items of a source stand in its places as ``items`` has them: what moves scores moves no shares.
    """
    sources = np.unique(origins.names, return_inverse=True)[1]
    by_item = np.argsort(origins.items)
    of_items = sources[by_item[np.searchsorted(origins.items, items, sorter=by_item)]]
    order = np.empty(len(items), np.int64)
    order[np.argsort(sources, kind="stable")] = np.argsort(of_items, kind="stable")
    return scores[order], items[order]


def merge(sources: Sequence[Source], n: int) -> Origins:
    """Returns at most ``n`` of all items, each once, at the best place that a source gives it.

    The place of a source's j-th item is j over its quota: by D'Hondt's method, of any number of places a
    source with items left gets its share, rounded down at least. Sources of quota 0 stand behind all others;
    of equal places that of the source named first comes first.
    """
    places = [
        np.arange(1, len(source.items) + 1) / source.quota
        if source.quota
        else np.full(len(source.items), np.inf)
        for source in sources
    ]
    items = np.concatenate([source.items for source in sources])
    owners = np.repeat(np.arange(len(sources)), [len(source.items) for source in sources])
    order = np.lexsort((owners, np.concatenate(places)))
    # The first of each item in that order.
    _, first = np.unique(items[order], return_index=True)
    chosen = order[np.sort(first)][:n]
    scores = np.concatenate([source.scores for source in sources])[chosen]
    return Origins(items[chosen], [sources[owner].name for owner in owners[chosen].tolist()], scores)
