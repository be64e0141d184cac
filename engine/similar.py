"""Items like an item: those whose embeddings point its way."""

import time
from collections.abc import Sequence

import numpy as np

from recserve.engine.batch import LoadedBundle
from recserve.engine.bundle import Bundle
from recserve.engine.ranked import few_left, new_slate_ids, slate_items
from recserve.engine.types import SOURCE_SIMILAR, Request, Slate
from recserve.errors import InvalidRequest, UnknownItem


def has_directions(bundle: Bundle) -> bool:
    """False where items have one number each: numbers all point the same way."""
    return bundle.manifest.embedding_size > 1


def similar_slate(
    loaded: LoadedBundle, item_id: str, k: int, *, exclude: Sequence[str], variant: str, filter: str
) -> Slate:
    """Answers Engine.similar_items; the arguments are checked but for what is in the bundle."""
    bundle = loaded.bundle
    if not has_directions(bundle):
        raise InvalidRequest(
            f"model {bundle.manifest.model}",
            found="one number per item",
            expected="one with item vectors where similar items are asked for",
        )
    start = time.perf_counter_ns()
    vocabulary = bundle.catalogue.vocabulary
    allowed = loaded.planner.allowed(Request(filter=filter))
    item = vocabulary.index_of(item_id)
    if item < 0:
        raise UnknownItem("item_id", found=item_id, expected="an item of the catalogue")
    banned = vocabulary.indices(exclude)
    banned = np.unique(np.concatenate([banned[banned >= 0], loaded.gone, np.array([item], np.int32)]))
    scores, items = loaded.retriever.similar(np.array([item], np.int32), k, banned, allowed)
    return Slate(
        items=slate_items(bundle, scores, items),
        bundle_version=bundle.manifest.bundle_version,
        variant=variant or bundle.manifest.default_variant,
        source=SOURCE_SIMILAR,
        warnings=few_left(k, int((items >= 0).sum())) if allowed else (),
        stage_ns={"retrieve": time.perf_counter_ns() - start},
        slate_id=new_slate_ids(1)[0],
    )
