"""The first step of a brown-out: a smaller variant, and no stage that a slate can do without."""

from collections.abc import Sequence
from dataclasses import replace

from recserve.engine.engine import Engine
from recserve.engine.ranked import Ranked
from recserve.engine.types import DEGRADED_VARIANT, Request
from recserve.errors import InvalidRequest

# Before any moment of ``time.monotonic``: what can be left out of a slate that is late already is.
PAST = float("-inf")


def rank_smaller(engine: Engine, requests: Sequence[Request]) -> list[Ranked | InvalidRequest]:
    """Does what :meth:`Engine.rank_each` does with less, which each answer names in ``degraded``.

    Who names a variant gets it; the others that of the settings (``smaller_variant``), if the bundle has it.
    An answer that is kept costs nothing, and is given as it is.
    """
    kept = engine.kept_answers(requests)
    rest = [request for i, request in enumerate(requests) if i not in kept]
    smaller = iter(_rank_smaller(engine, rest) if rest else ())
    return [kept[i] if i in kept else next(smaller) for i in range(len(requests))]


def _rank_smaller(engine: Engine, requests: Sequence[Request]) -> list[Ranked | InvalidRequest]:
    variant = engine.config.smaller_variant
    changes = bool(variant) and variant in engine.manifest.variants
    asked = [replace(one, variant=variant) if changes and not one.variant else one for one in requests]
    answers = engine.rank_each(asked, degraded=False, deadlines=[PAST] * len(asked))
    return [
        replace(answer, degraded=(*answer.degraded, DEGRADED_VARIANT))
        if isinstance(answer, Ranked) and one is not request
        else answer
        for request, one, answer in zip(requests, asked, answers, strict=True)
    ]
