"""What an engine answers before the first caller comes, so that the caller finds all at hand."""

from collections.abc import Iterator

import numpy as np

from recserve.engine.bundle import Bundle
from recserve.engine.config import EngineConfig
from recserve.engine.traces import NOBODY, RECOMMEND, read_trace
from recserve.engine.types import Request

# After so many, each alone too, a search takes its usual time: before, the vectors that it scores in float32
# come from memory.
WARM_REQUESTS = 16
# Enough to have met the usual lengths; a load should not wait for more.
MAX_REQUESTS = 1000
BATCH = 16


def rehearsal(bundle: Bundle, config: EngineConfig) -> Iterator[list[Request]]:
    """Yields a batch and its requests alone per variant, then what :func:`captured` does."""
    vocabulary = bundle.catalogue.vocabulary
    items = vocabulary.ids(range(0, len(vocabulary), -(-len(vocabulary) // WARM_REQUESTS)))
    for variant in bundle.manifest.variants:
        requests = [Request(history=[item], variant=variant) for item in items]
        yield [*requests, Request()]
        if bundle.manifest.text_encoder is not None:
            yield [Request(query_text=items[0], variant=variant)]
        yield from ([request] for request in requests)
    yield from captured(bundle, config)


def captured(bundle: Bundle, config: EngineConfig) -> Iterator[list[Request]]:
    """Yields batches of the first Recommend calls of ``config.warmup_trace``; none without one.

    Lengths of lists and histories are those of the trace, as far as the settings allow them. Its users are
    pseudonyms: each stands for one of the bundle's, those that it brought histories for by random items.
    Raises :class:`DataError` for another file.
    """
    if config.warmup_trace is None:
        return
    trace = read_trace(config.warmup_trace)
    rng = np.random.default_rng(0)
    items, users = bundle.catalogue.vocabulary, bundle.histories.vocabulary
    longest, most = min(config.max_history, bundle.manifest.inputs.max_history), min(config.max_k, len(items))
    different, which = np.unique(trace.subjects, return_inverse=True)
    names = (
        users.ids([i % len(users) for i in range(len(different))]) if len(users) else [""] * len(different)
    )
    requests = []
    for i in [i for i, kind in enumerate(trace.kinds) if kind == RECOMMEND][:MAX_REQUESTS]:
        rows = rng.integers(0, len(items), min(int(trace.n_items[i]), longest)).tolist()
        requests.append(
            Request(
                user_id="" if trace.subjects[i] == NOBODY else names[which[i]],
                k=max(1, min(int(trace.k[i]), most)),
                history=items.ids(rows) or None,
            )
        )
    for start in range(0, len(requests), BATCH):
        yield requests[start : start + BATCH]
