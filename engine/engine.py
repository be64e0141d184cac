"""The face of the embedded engine."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from types import TracebackType

from recserve import kernels
from recserve.engine.batch import Batch, LoadedBundle
from recserve.engine.bundle import Bundle, Manifest
from recserve.engine.bundle.ids import check_id
from recserve.engine.bundle.stamps import Stamps
from recserve.engine.candidates import rank_candidates
from recserve.engine.config import EngineConfig
from recserve.engine.explain.cause import WhyNot
from recserve.engine.explain.why_not import why_not
from recserve.engine.features import check_ids, check_k, check_page, check_variant
from recserve.engine.loading import check_for, load_bundle
from recserve.engine.lookups import Lookups
from recserve.engine.online.stage import OnlineStage
from recserve.engine.page import PageCaps, one_variant, run_page
from recserve.engine.pipeline import Runner, run
from recserve.engine.ranked import Ranked, slates
from recserve.engine.rehearsal import rehearsal
from recserve.engine.similar import has_directions, similar_slate
from recserve.engine.slate_cache import SlateCache
from recserve.engine.state.items import ItemChange, LiveItems
from recserve.engine.state.observed import ObservedEvents
from recserve.engine.time_budget import deadlines_of
from recserve.engine.types import DEFAULT_K, Ranking, Request, Slate
from recserve.errors import InvalidRequest

# Once a process: of later bundles it would do nothing.
_warm_kernels = cache(kernels.warmup)


class Engine(Lookups):
    """Answers requests from one bundle; every method may be called from several threads.

    A process that is forked from the one that loaded it must load its own.

    >>> with Engine.load("bundles/movies") as engine:
    ...     slate = engine.recommend(Request(user_id="u42", k=10))
    """

    def __init__(
        self,
        loaded: LoadedBundle,
        config: EngineConfig,
        observed: ObservedEvents | None = None,
        live_items: LiveItems | None = None,
    ) -> None:
        """Use :meth:`load`."""
        super().__init__(loaded, config, observed, live_items)
        self._cache = SlateCache(config.cache_slates, config.cache_seconds) if config.cache_slates else None

    @classmethod
    def load(
        cls,
        path: str | Path,
        config: EngineConfig | None = None,
        *,
        observed: ObservedEvents | None = None,
        online: Callable[[Bundle], OnlineStage] | None = None,
        live_items: LiveItems | None = None,
        checked: Stamps | None = None,
    ) -> "Engine":
        """Opens, checks and warms the bundle in ``path``; the first request compiles nothing.

        ``observed``: events that engines of several versions share; one's own when not given. ``online``:
        makes what learns from events and moves scores (engine/online); nothing does when not given.
        ``live_items``: items that several versions serve beside their bundles. ``checked``: see open_bundle.
        Raises :class:`BundleInvalid` when the bundle is damaged or not signed as ``config`` requires,
        :class:`ConfigError` when the machine cannot run it as configured.

        Where a pause of 0.2 s matters, call ``gc.freeze()`` afterwards: a full collection sees all of Numba.
        """
        config = config or EngineConfig()
        engine = cls(load_bundle(path, config, online, checked), config, observed, live_items)
        _warm_kernels()
        engine.rehearse()
        engine._live.follow()
        return engine

    def rehearse(self) -> None:
        """Answers requests of its own, so that the first caller finds all at hand."""
        bundle = self._loaded.bundle
        for batch in rehearsal(bundle, self._config):
            # Past the checks: limits that a user set low must not refuse the engine's own requests.
            self._run(batch)
        if has_directions(bundle):
            self.similar_items(bundle.catalogue.vocabulary.ids([0])[0], k=1)
        self._counters.reset()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Refuses further calls; calls that are running finish. Closing twice is fine."""
        self._life.end()
        if self._loaded.online is not None:
            self._loaded.online.close()

    def drop_kept(self) -> None:
        """Forgets what is kept to save time: the answers of the cache, what encoders computed of users."""
        self._live.forget(None)
        if self._cache is not None:
            self._cache.clear()

    def change_items(self, changes: Sequence[ItemChange]) -> None:
        """Serves further items, or none of some any more, from the next request on, until the process ends.

        Where there is a state, :meth:`State.change_items` also keeps that. Raises :class:`InvalidRequest`.
        """
        self._life.check()
        self._live.change(changes)

    @property
    def manifest(self) -> Manifest:
        """What the served bundle says about itself."""
        return self._loaded.bundle.manifest

    @property
    def loaded(self) -> LoadedBundle:
        """The bundle with what it is answered from: whether it is trusted, where its graphs run."""
        return self._loaded

    @property
    def config(self) -> EngineConfig:
        """The settings that the engine was loaded with."""
        return self._config

    def recommend(self, request: Request) -> Slate:
        """Answers one request. An unknown user gets the popular items, never an exception.

        Raises :class:`InvalidRequest` for a field that no answer could satisfy (``k`` below 1, ...).
        """
        return self.recommend_many([request])[0]

    def recommend_many(self, requests: Iterable[Request]) -> list[Slate]:
        """Answers requests as one batch, in their order; one bad entry refuses all, as :meth:`recommend`."""
        requests = self._accept(requests)
        for request in requests:
            self._check(request)
        return slates(self._recall(requests, deadlines=deadlines_of(requests, time.monotonic())))

    def recommend_page(self, rows: Mapping[str, Request], *, caps: PageCaps = None) -> dict[str, Slate]:
        """Answers the rows of one page by name, as one batch: an item that one has, no later one gets.

        Each is the slate of its request with the items of the rows before it excluded, full where the
        catalogue and ``caps`` (as of :class:`Rules`, of all rows together) allow. Raises
        :class:`InvalidRequest` for a row that is refused, as :meth:`recommend`.
        """
        return dict(zip(rows, slates(self.rank_page(rows, caps=caps)), strict=True))

    def rank_page(
        self, rows: Mapping[str, Request], *, caps: PageCaps = None, deadline: float = math.inf
    ) -> list[Ranked]:
        """Does what :meth:`recommend_page` does, and leaves the items as arrays.

        ``deadline``: as of :meth:`rank_each`, for the page; a budget of one row counts for all.
        """
        requests = self._accept(rows.values())
        check_page(rows, self._check, self._config.max_k)
        self._loaded.planner.page_caps(caps)
        if not requests:
            return []
        variant = one_variant(requests, self._variant(Request()))
        deadline = min(deadline, *deadlines_of(requests, time.monotonic()), math.inf)
        deadlines = [deadline] * len(requests) if deadline < math.inf else []
        return self._run_batch(requests, variant, partial(run_page, caps=caps), deadlines=deadlines)

    def recommend_each(self, requests: Iterable[Request]) -> list[Slate | InvalidRequest]:
        """Answers requests as one batch, in their order; a bad entry has its error in its place."""
        answers = self.rank_each(requests)
        named = iter(slates([answer for answer in answers if isinstance(answer, Ranked)]))
        return [next(named) if isinstance(answer, Ranked) else answer for answer in answers]

    def rank_each(
        self, requests: Iterable[Request], *, degraded: bool = False, deadlines: Sequence[float] | None = None
    ) -> list[Ranked | InvalidRequest]:
        """Does what :meth:`recommend_each` does, and leaves the items as arrays for the wire to encode.

        ``degraded``: leaves the model out and answers with popular items, at a small part of the cost.
        ``deadlines``: of each request, by ``time.monotonic``; not given: by their budgets from now on.
        """
        requests = self._accept(requests)
        deadlines = deadlines_of(requests, time.monotonic()) if deadlines is None else deadlines
        refused: dict[int, InvalidRequest] = {}
        for i, request in enumerate(requests):
            try:
                self._check(request)
            except InvalidRequest as error:
                refused[i] = error
        if not refused:
            return [*self._recall(requests, degraded, deadlines)]
        good = [i for i in range(len(requests)) if i not in refused]
        kept = [deadlines[i] for i in good] if deadlines else ()
        ranked = iter(self._recall([requests[i] for i in good], degraded, kept))
        return [refused[i] if i in refused else next(ranked) for i in range(len(requests))]

    def _check(self, request: Request) -> None:
        check_for(self._loaded, request, self._config)

    def _accept(self, requests: Iterable[Request]) -> list[Request]:
        requests = list(requests)
        self._life.check()
        if len(requests) > self._config.max_requests:
            raise InvalidRequest(
                "requests", found=f"{len(requests)} long", expected=f"at most {self._config.max_requests}"
            )
        return requests

    def in_haste(self, deadlines: Sequence[float]) -> list[int]:
        """Returns the rows of a batch that are late unless they are answered apart from the others."""
        return self._loaded.costs.in_haste(deadlines, time.monotonic())

    def better_alone(self, requests: Sequence[Request]) -> list[int]:
        """Returns the rows of a batch for whose texts the others would wait, the shortest text first."""
        texts = self._loaded.texts
        if texts is None or not texts.is_slow:
            return []
        rows = (i for i, request in enumerate(requests) if request.query_text)
        return sorted(rows, key=lambda i: len(requests[i].query_text))

    def _recall(
        self, requests: list[Request], degraded: bool = False, deadlines: Sequence[float] = ()
    ) -> list[Ranked]:
        """Answers from what was computed before, where the settings say so, and computes the rest."""
        if self._cache is None:
            return self._run(requests, degraded, deadlines)
        states = self._states(requests)
        computed = 0

        def compute(rows: list[int]) -> list[Ranked]:
            nonlocal computed
            computed = len(rows)
            kept = [deadlines[i] for i in rows] if deadlines else ()
            return self._run([requests[i] for i in rows], degraded, kept)

        answers = self._cache.answer(requests, states, compute, stale=degraded, epoch=self._epoch)
        self._counters.add(requests=len(requests) - computed, cached=len(requests) - computed)
        return answers

    def kept_answers(self, requests: Sequence[Request]) -> dict[int, Ranked]:
        """Returns, by row, the answers that :meth:`rank_each` would give again instead of computing them."""
        self._life.check()
        if self._cache is None:
            return {}
        kept = self._cache.find(requests, self._states(requests), epoch=self._epoch)
        self._counters.add(requests=len(kept), cached=len(kept))
        return kept

    @property
    def _epoch(self) -> tuple[int, int]:
        return self._observed.n_erased, self._live.n_changes

    def _states(self, requests: Sequence[Request]) -> list[bytes | None]:
        """Returns what the answer to each request depends on and the request does not say."""
        frequency = self._loaded.planner.frequency
        return [
            self._observed.state_of(request.user_id, with_shown=frequency(request) is not None)
            for request in requests
        ]

    def _run(
        self, requests: list[Request], degraded: bool = False, deadlines: Sequence[float] = ()
    ) -> list[Ranked]:
        if len({request.variant for request in requests}) == 1:
            return self._run_batch(requests, self._variant(requests[0]), run, degraded, deadlines)
        rows_of: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            rows_of.setdefault(self._variant(request), []).append(i)
        ranked: dict[int, Ranked] = {}
        for variant, rows in rows_of.items():
            kept = [deadlines[i] for i in rows] if deadlines else ()
            answers = self._run_batch([requests[i] for i in rows], variant, run, degraded, kept)
            ranked.update(zip(rows, answers, strict=True))
        return [ranked[i] for i in range(len(requests))]

    def _run_batch(
        self,
        requests: list[Request],
        variant: str,
        run: Runner,
        degraded: bool = False,
        deadlines: Sequence[float] = (),
    ) -> list[Ranked]:
        loaded, store = self._live.serving
        batch = Batch(loaded, variant, requests, now=int(time.time()), degraded=degraded, deadlines=deadlines)
        answers = run(batch, store)
        self._counters.add(
            requests=len(requests),
            cold_starts=0 if degraded else batch.n_cold_starts,
            ignored_items=sum(resolved.n_ignored_items for resolved in batch.resolved),
        )
        return answers

    def _variant(self, request: Request) -> str:
        return request.variant or self._loaded.bundle.manifest.default_variant

    def rank(self, request: Request, item_ids: Sequence[str]) -> Ranking:
        """Scores the caller's own candidates by what ``request`` asks for, best first.

        ``k``, ``exclude``, ``filter`` and ``include_seen`` are about retrieval and count for nothing here.
        Raises :class:`InvalidRequest` where the bundle has no ranker.
        """
        return self.rank_many([(request, item_ids)])[0]

    def rank_many(self, asked: Iterable[tuple[Request, Sequence[str]]]) -> list[Ranking]:
        """Answers :meth:`rank` for many as one batch; one bad entry refuses all."""
        asked = list(asked)
        requests = self._accept(request for request, _ in asked)
        loaded, store = self._live.serving
        for request, item_ids in asked:
            self._check(request)
            check_ids("item_ids", item_ids, self._config.max_items)
        ids = [item_ids for _, item_ids in asked]
        return rank_candidates(loaded, requests, ids, store, int(time.time()))

    def why_not(self, request: Request, item_id: str) -> WhyNot:
        """Returns what keeps ``item_id`` out of the slate of ``request``, with its numbers.

        The request is answered several times over: for people who ask, not for every item of every slate.
        """
        self._life.check()
        self._check(request)
        check_id("item_id", item_id)
        loaded, store = self._live.serving
        batch = Batch(loaded, self._variant(request), [request], now=int(time.time()))
        return why_not(batch, store, item_id)

    def similar_items(
        self,
        item_id: str,
        k: int = DEFAULT_K,
        *,
        exclude: Sequence[str] = (),
        variant: str = "",
        filter: str = "",
    ) -> Slate:
        """Returns the items whose embeddings point the way of ``item_id``'s (cosine), without itself.

        ``filter``: as that of a :class:`Request`.

        Raises :class:`InvalidRequest` for an item that the catalogue does not have, and where the model has
        no item vectors, as popularity.
        """
        self._life.check()
        check_k(k, self._config)
        check_id("item_id", item_id)
        check_ids("exclude", exclude, self._config.max_exclude)
        check_variant(variant, self._loaded.bundle)
        return similar_slate(self._loaded, item_id, k, exclude=exclude, variant=variant, filter=filter)

    def stats(self) -> dict[str, int]:
        """Returns counts since the start: requests, cached answers, cold starts, ignored items, events.

        Of encoders also ``encoded_positions``, the ``padding_positions`` among them, ``history_cache_hits``
        and ``_misses``; where events teach, ``online_examples``, and ``online_rollbacks``: that was undone.
        """
        return self._counters.read() | self._loaded.stats()
