"""The nouns of the engine: what a caller asks (Request) and what it gets (Slate)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from recserve.engine.bundle.rules import SOURCES, Rules
from recserve.engine.explain.explanation import EXPLAIN_NONE, Explanation

# Where items come from: the model's query embedding, what is like the newest of the history, what the users
# of a segment or all users take, what is new, chance, what is like the request's text.
SOURCE_MODEL, SOURCE_SIMILAR, SOURCE_SEGMENT, SOURCE_POPULARITY, SOURCE_NEW, *_OTHERS = SOURCES
SOURCE_EXPLORE, SOURCE_QUERY_TEXT = _OTHERS

# What may be left out of a slate so that it comes in time: "model" means popular items instead of its own,
# "rank" the order of retrieval, "rerank" no diversity or novelty, "explain" no reasons.
DEGRADED_MODEL = "model"
# And "cache": an answer that was computed for the same request some time ago.
DEGRADED_CACHE = "cache"
DEGRADED_VARIANT = "variant"
DEGRADED_RANK, DEGRADED_RERANK, DEGRADED_EXPLAIN = "rank", "rerank", "explain"

DEFAULT_K = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One caller's ask. Ids are external strings; unknown ones are a cold start or ignored, never an error.

    ``history`` (newest last) wins over the history that the engine remembers for ``user_id``; an empty one
    means a cold start here, but "not given" over gRPC, which cannot tell the two apart.
    ``history_timestamps``: seconds since the epoch, and ``history_values``: what the items were rated (NaN:
    not known), each empty or as long as ``history``. ``filter``: which items
    may come back, as ``price < 50 and category in ("book", "game")`` (docs/slates.md); the best of them do.
    ``predict`` (of a bundle with a ranker): what the score is. "context": click probability now; "click":
    whatever the moment; "rating": expected rating; "retrieval": that of the first stage; "": the first of
    these that the bundle has. ``weights`` instead: the score is the weighted sum of targets of the ranker,
    "retrieval" and numeric attributes of the items.
    ``rules``: pins, boosts, caps and diversity, on top of the server's own. ``explain``: whether every item
    comes with its reasons, "fast" or "exact" (docs/explanations.md); "none" for nothing. ``page_token``: ""
    for the first page of a list, then the ``next_page_token`` of the slate before; None: no further page is
    wanted.
    ``seed``: the same choice again where chance has a part (exploration), 0 to 2^63 - 1; None: a new one.
    ``budget_ms``: what does not fit into these milliseconds is left out of the slate: explanations first,
    then diversity, then the second stage; None: nothing is, but for a deadline of the call.
    ``query_text``: words in any language of the bundle's text encoder: the items whose texts are the nearest,
    or, where quotas name the source "query_text", its share of them.
    """

    user_id: str = ""
    k: int = DEFAULT_K
    history: Sequence[str] | None = None
    history_timestamps: Sequence[int] = ()
    history_values: Sequence[float] = ()
    exclude: Sequence[str] = ()
    context: Mapping[str, str] = field(default_factory=dict)
    variant: str = ""
    include_seen: bool = False
    filter: str = ""
    predict: str = ""
    weights: Mapping[str, float] = field(default_factory=dict)
    rules: Rules | None = None
    explain: str = EXPLAIN_NONE
    page_token: str | None = None
    seed: int | None = None
    budget_ms: int | None = None
    query_text: str = ""


@dataclass(frozen=True, slots=True)
class SlateItem:
    """One item of a slate: 1-based ``rank``, ``score`` (higher is better, comparable within the slate).

    Of a slate from several sources also ``source``, and ``retrieval_score``, the source's own (a cosine, a
    share of interactions, days before the newest, a probability); else "" and 0: it is Slate.source.
    ``explanation``: where the request asked for it.
    """

    rank: int
    item_id: str
    score: float
    source: str = ""
    retrieval_score: float = 0.0
    explanation: Explanation | None = None


@dataclass(frozen=True, slots=True)
class Slate:
    """The final ordered list, with the bundle and variant that made it and the nanoseconds of each stage.

    ``arm``: the caller's, while a server divides its callers between versions; else "". ``degraded``: what
    was left out to answer in time ("model": these are popular items, "cache": this was computed before and
    may not know the newest events; "explain", "rerank", "rank": without them); empty for a full answer.
    ``slate_id``: of this slate alone, for the events that it leads to. ``propensities``: with which
    probability each item got its place, and ``explored``: the ranks of those that have it to learn something;
    empty where nothing is learned online, and where the source ``explore`` brought candidates.
    ``next_page_token``: asks for what comes after, for requests that page; "" where nothing is left.
    """

    items: tuple[SlateItem, ...]
    bundle_version: str
    variant: str
    source: str
    stage_ns: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    arm: str = ""
    degraded: tuple[str, ...] = ()
    slate_id: str = ""
    next_page_token: str = ""
    propensities: tuple[float, ...] = ()
    explored: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class RankedItem:
    """A scored candidate: ``predictions`` by target (click: a probability; rating: on the ratings' scale)."""

    item_id: str
    score: float
    predictions: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Ranking:
    """The caller's own candidates, best first; ``unknown_item_ids``: those that are not in the catalogue."""

    items: tuple[RankedItem, ...]
    unknown_item_ids: tuple[str, ...]
    bundle_version: str
    stage_ns: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
