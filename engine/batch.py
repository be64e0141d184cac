"""What goes through the stages of the pipeline: a batch of requests and the bundle that answers it."""

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from recserve.engine.bundle import Bundle, layout
from recserve.engine.bundle.rules import PipelineConfig
from recserve.engine.explain.explained import Explained
from recserve.engine.features import ResolvedRequest
from recserve.engine.fixed_ranking import FixedRanking
from recserve.engine.online.stage import Choice, OnlineStage
from recserve.engine.ranking import Objective, RankStage
from recserve.engine.retrieval import Retriever
from recserve.engine.runtime import Runtime
from recserve.engine.segments import Segments
from recserve.engine.slate.plan import Planner
from recserve.engine.slate.quotas import Origins
from recserve.engine.slate.rerank import Reranker
from recserve.engine.sources import QuerySource
from recserve.engine.text_search import TextRanking, TextSearch
from recserve.engine.time_budget import StageCosts
from recserve.engine.types import Request
from recserve.errors import ConfigError, InvalidRequest
from recserve.kernels import Caps

SECONDS_PER_DAY = 86_400


@dataclass(frozen=True, slots=True)
class LoadedBundle:
    """A bundle with everything that answering from it needs."""

    bundle: Bundle
    runtime: Runtime
    sources: dict[str, QuerySource]
    retriever: Retriever
    planner: Planner
    reranker: Reranker
    ranking: RankStage | None = None
    online: OnlineStage | None = None
    segments: Segments | None = None
    newest: FixedRanking | None = None
    texts: TextSearch | None = None
    costs: StageCosts = field(default_factory=StageCosts)
    # Items that no slate may have any more.
    gone: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))

    @classmethod
    def of(
        cls,
        bundle: Bundle,
        runtime: Runtime,
        sources: dict[str, QuerySource],
        retriever: Retriever,
        config: PipelineConfig,
        ranking: RankStage | None = None,
    ) -> "LoadedBundle":
        """Adds the stages after retrieval; raises :class:`ConfigError` for rules that do not fit it."""
        try:
            planner = Planner(bundle, retriever.filters, config)
        except InvalidRequest as error:
            raise ConfigError(
                error.name, found=error.found, expected=error.expected, cure=error.cure
            ) from error
        entry = bundle.manifest.segments
        return cls(
            bundle,
            runtime,
            sources,
            retriever,
            planner,
            Reranker(bundle.item_embeddings, bundle.popularity),
            ranking,
            segments=None if entry is None else Segments(bundle, entry, retriever.popularity),
            newest=_newest(bundle),
        )

    @property
    def index_names(self) -> set[str]:
        """The digests of the vectors that are searched, which name the prepared indices."""
        manifest = self.bundle.manifest
        entry = manifest.text_encoder
        return {manifest.item_table_sha256} | ({manifest.files[entry.vectors].sha256} if entry else set())

    def stats(self) -> dict[str, int]:
        """Returns what sources and online learning have counted."""
        counts: dict[str, int] = {}
        for source in self.sources.values():
            for name, count in source.stats().items():
                counts[name] = counts.get(name, 0) + count
        if self.online is not None:
            learner = self.online.learner
            counts |= {"online_examples": learner.n_examples, "online_rollbacks": learner.n_rollbacks}
        return counts


def _newest(bundle: Bundle) -> FixedRanking | None:
    """Returns the items by age, the youngest first; scores: days before the youngest's first interaction."""
    if layout.FIRST_SEEN not in bundle.manifest.files:
        return None
    shape = (bundle.manifest.n_items,)
    stored = bundle.array(layout.FIRST_SEEN, np.dtype(np.int64), shape)
    first_seen = np.zeros(len(bundle.popularity), np.int64)
    first_seen[: len(stored)] = stored
    # Nobody had it yet: nothing is newer.
    seen = np.where(first_seen > 0, first_seen, first_seen.max())
    return FixedRanking.of(((seen - seen.max()) / SECONDS_PER_DAY).astype(np.float32))


@dataclass(slots=True)
class Batch:
    """Requests for one variant on their way through the stages; row i belongs to ``requests[i]``.

    ``degraded``: the model is left out, all rows are answered as cold starts are. ``n_spare``: how many more
    candidates each row gets because rows before it on a page may take them. ``page_caps``: of what all rows
    of a page have together. ``deadlines``: of the rows, by ``clock`` in seconds; empty for none.
    """

    loaded: LoadedBundle
    variant: str
    requests: list[Request]
    now: int
    degraded: bool = False
    n_spare: int = 0
    page_caps: Caps | None = None
    deadlines: Sequence[float] = ()
    clock: Callable[[], float] = time.monotonic
    # When the stage before was done (perf_counter_ns).
    since_ns: int = field(default_factory=time.perf_counter_ns)
    # By row: the stages that are left out of it to be in time.
    skipped: dict[int, tuple[str, ...]] = field(default_factory=dict)
    resolved: list[ResolvedRequest] = field(default_factory=list)
    queries: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    found: list[tuple[str, NDArray[np.float32], NDArray[np.int32]]] = field(default_factory=list)
    stage_ns: dict[str, int] = field(default_factory=dict)
    # By row: what it is ranked by; rows that keep the order of retrieval are not in it.
    objectives: dict[int, Objective] = field(default_factory=dict)
    # By row: why its items are in the slate; of the rows that ask for it.
    explained: dict[int, Explained] = field(default_factory=dict)
    # By row: where its candidates come from; rows with one source are not in it.
    origins: dict[int, Origins] = field(default_factory=dict)
    # The rows that the model can answer; the others are cold starts.
    model_rows: list[int] = field(default_factory=list)
    # By row: the order of the catalogue by its text; of the rows that have one.
    by_text: dict[int, TextRanking] = field(default_factory=dict)
    # By row: what the online stage left to chance.
    choices: dict[int, Choice] = field(default_factory=dict)

    def done(self, stage: str, n_rows: int = 0) -> None:
        """Adds the time since the stage before to that of ``stage``.

        ``n_rows``: how many rows an optional stage was for, whose cost is remembered.
        """
        now = time.perf_counter_ns()
        spent, self.since_ns = now - self.since_ns, now
        self.stage_ns[stage] = self.stage_ns.get(stage, 0) + spent
        if n_rows:
            self.loaded.costs.record(stage, n_rows, spent)

    @property
    def moves(self) -> OnlineStage | None:
        """What moves scores by what was learned online, None where nothing does."""
        return None if self.degraded else self.loaded.online

    @property
    def n_cold_starts(self) -> int:
        """How many rows neither the model answers nor a text."""
        n_by_text = len(self.by_text.keys() - self.model_rows) if self.by_text else 0
        return len(self.requests) - len(self.model_rows) - n_by_text

    def query(self, i: int) -> NDArray[np.float32] | None:
        """Returns the query embedding (d,) of row ``i``, None for a cold start."""
        place = bisect_left(self.model_rows, i)
        is_known = place < len(self.model_rows) and self.model_rows[place] == i
        return self.queries[place] if is_known else None

    def all_wanted(self, rows: Sequence[int]) -> list[int]:
        """Returns :meth:`n_wanted` of each of ``rows``."""
        if self.objectives or self.moves is not None:
            return [self.n_wanted(i) for i in rows]
        return [self.resolved[i].n_candidates + self.n_spare for i in rows]

    def n_wanted(self, i: int) -> int:
        """How many items retrieval must bring for row ``i``."""
        n, ranking = self.resolved[i].n_candidates, self.loaded.ranking
        if ranking is not None and i in self.objectives:
            n = max(n, ranking.n_candidates)
        if self.moves:
            n = max(n, self.moves.n_candidates)
        return n + self.n_spare
