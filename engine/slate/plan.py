"""What is to be done for one request between its candidates and its slate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from recserve.engine.bundle import Bundle, layout
from recserve.engine.bundle.rules import (
    CALIBRATED,
    DPP,
    MMR,
    NOTHING,
    SCORE,
    SOURCES,
    Boost,
    Frequency,
    Pin,
    PipelineConfig,
    Rules,
    check_rules,
)
from recserve.engine.filters.compiler import CompiledFilter, FilterCompiler
from recserve.engine.kept import Kept
from recserve.engine.slate.groups import both_caps, caps_of, categories_of
from recserve.engine.types import (
    SOURCE_NEW,
    SOURCE_QUERY_TEXT,
    SOURCE_SEGMENT,
    SOURCE_SIMILAR,
    Request,
)
from recserve.errors import InvalidRequest
from recserve.kernels import Caps, Categories

NO_ITEMS: NDArray[np.int32] = np.empty(0, np.int32)
DEFAULT_CANDIDATES = 200
DEFAULT_WEIGHTS = {MMR: 0.15, DPP: 0.15, CALIBRATED: 0.5}
# Arrays of 4 bytes per item and more: few.
MAX_KEPT_ARRAYS = 16


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """How slates are chosen; requests that share one are re-ranked in one call.

    ``boosts``: (n_items,) float32 added to all scores, None for none; ``categories``: what slates are
    calibrated on, in the shares of the history or, ``by_merit``, of their candidates' relevance; ``quotas``:
    of candidates by source.
    """

    method: str
    diversity: float
    novelty: float
    caps: Caps | None
    boosts: NDArray[np.float32] | None
    min_score: float | None
    n_candidates: int
    categories: Categories | None = None
    quotas: tuple[tuple[str, float], ...] = ()
    serendipity: float = 0.0
    by_merit: bool = False

    @property
    def chooses(self) -> bool:
        """Whether the slate is another choice than the first candidates."""
        return self.is_diverse or self.caps is not None

    @property
    def is_diverse(self) -> bool:
        """Whether it is chosen by more than the order of the candidates."""
        return self.method != SCORE or self.novelty > 0 or self.serendipity > 0

    def plain(self) -> "Recipe":
        """Returns the recipe without diversity, novelty and serendipity."""
        return replace(self, method=SCORE, diversity=0.0, novelty=0.0, serendipity=0.0, categories=None)


@dataclass(frozen=True, slots=True)
class Plan:
    """A request's recipe and its pins: (rank, item) by rank, those that may be shown."""

    recipe: Recipe
    pins: tuple[tuple[int, int], ...]
    warnings: tuple[str, ...]

    def plain(self) -> "Plan":
        """Returns the plan without diversity, novelty and serendipity."""
        return replace(self, recipe=self.recipe.plain())

    def n_candidates(self, k: int) -> int:
        """How many items a slate of ``k`` is chosen from."""
        return max(k, self.recipe.n_candidates) if self.recipe.chooses else k


class Planner:
    """Turns the rules of requests and operator into plans; safe to call from several threads.

    ``config``: the operator's; what it leaves open is the bundle's. Raises :class:`InvalidRequest` where
    that names an attribute that the catalogue does not have, or a filter does not compile.
    """

    def __init__(self, bundle: Bundle, filters: FilterCompiler, config: PipelineConfig) -> None:
        self._catalogue = bundle.catalogue
        self._filters = filters
        self._config = config.over(bundle.manifest.pipeline or NOTHING)
        self._sources = [source for source in SOURCES if _has(bundle, source)]
        self._recipes = Kept[Recipe](MAX_KEPT_ARRAYS)
        self._caps = Kept[Caps](MAX_KEPT_ARRAYS)
        self._categories = Kept[Categories](MAX_KEPT_ARRAYS)
        self._boosts = Kept[NDArray[np.float32]](MAX_KEPT_ARRAYS)
        # Most bundles have no rules and most requests neither: then there is nothing to do.
        self._is_empty = NOTHING.over(self._config) == NOTHING
        self._filters_nothing = self._is_empty and not self._config.filter
        if self._config.filter:
            filters.compile(self._config.filter, "pipeline.filter")
        self._recipe(self._config, "pipeline")

    def is_plain(self, request: Request) -> bool:
        """Whether neither operator nor request has a rule or a filter."""
        return self._filters_nothing and request.rules is None and not request.filter

    def check(self, request: Request) -> None:
        """Raises :class:`InvalidRequest` for rules or a filter that no answer could follow."""
        if request.filter:
            self._filters.compile(request.filter)
        if request.rules is not None:
            check_rules(request.rules, "rules", InvalidRequest)
            for i, pin in enumerate(request.rules.pins):
                if pin.rank > request.k:
                    expected = f"1 to k ({request.k})"
                    raise InvalidRequest(f"rules.pins[{i}].rank", found=pin.rank, expected=expected)
            self._recipe(self._rules(request), "rules")

    def allowed(self, request: Request) -> CompiledFilter | None:
        """Returns what the filters of operator and request allow, None for everything."""
        always, own = self._config.filter, request.filter
        if always and own:
            return self._filters.both(always, own)
        return self._filters.compile(always or own) if always or own else None

    def refused_by(self, request: Request, item: int) -> str:
        """Returns which filter does not hold for ``item``, "pipeline.filter" or "filter"; "" for none."""
        for name, text in (("pipeline.filter", self._config.filter), ("filter", request.filter)):
            if text and not self._filters.compile(text, name).allow.mask[item]:
                return name
        return ""

    def caps(self, request: Request) -> Mapping[str, int]:
        """Returns by attribute how many items of one value the slate of ``request`` may have."""
        return self._rules(request).caps

    def frequency(self, request: Request) -> Frequency | None:
        """Returns how often the user of ``request`` may be shown an item."""
        own = None if request.rules is None else request.rules.frequency
        return own or self._config.frequency

    def plan(
        self, request: Request, allowed: CompiledFilter | None, shown: NDArray[np.int32] = NO_ITEMS
    ) -> Plan | None:
        """Returns what is to be done for a checked request, None where the best candidates are the slate.

        ``shown``: (n,) int32, items of earlier pages or rows; one that is pinned is not pinned again.
        """
        if request.rules is None and self._is_empty:
            return None
        rules = self._rules(request)
        recipe = self._recipe(rules, "rules")
        pins, warnings = self._pins(rules.pins, request, recipe, allowed, shown)
        return Plan(recipe, pins, warnings)

    def page_caps(self, caps: Mapping[str, int] | None) -> Caps | None:
        """Returns the caps of a page; raises :class:`InvalidRequest` for one that no page could have."""
        if not caps:
            return None
        check_rules(Rules(caps=caps), "page", InvalidRequest)
        pairs = tuple(sorted(caps.items()))
        return self._caps.get(pairs, lambda: caps_of(self._catalogue, pairs, "page.caps"))

    def capped(self, plan: Plan | None, page: Caps) -> Plan:
        """Returns ``plan`` with the caps of a page beside its own; pins that these forbid are left out."""
        plan = plan or Plan(self._recipe(NOTHING, "rules"), (), ())
        recipe, left, pins = plan.recipe, page.limits.copy(), []
        for rank, item in plan.pins:
            groups = page.groups[page.indptr[item] : page.indptr[item + 1]]
            if (left[groups] > 0).all():
                left[groups] -= 1
                pins.append((rank, item))
        n_lost = len(plan.pins) - len(pins)
        lost = f"{n_lost} of {len(plan.pins)} pinned items are kept out by the caps of the page"
        caps = page if recipe.caps is None else both_caps(recipe.caps, page)
        warnings = (*plan.warnings, lost) if n_lost else plan.warnings
        return Plan(replace(recipe, caps=caps), tuple(pins), warnings)

    def _rules(self, request: Request) -> Rules:
        if request.rules is None:
            return self._config
        # Where the operator says nothing there is nothing to fill in, which takes a while to find out.
        return request.rules if self._is_empty else request.rules.over(self._config)

    def _recipe(self, rules: Rules, name: str) -> Recipe:
        boosts = tuple((boost.filter, boost.weight) for boost in rules.boosts)
        caps = tuple(sorted(rules.caps.items()))
        others = (
            rules.min_score,
            rules.rerank,
            rules.diversity,
            rules.novelty,
            rules.candidates,
            rules.calibrate,
            _in_order(rules.quotas),
            rules.serendipity,
            rules.exposure,
        )
        return self._recipes.get(
            (boosts, caps, *others), lambda: self._make_recipe(rules, boosts, caps, name)
        )

    def _make_recipe(
        self, rules: Rules, boosts: tuple[object, ...], caps: tuple[tuple[str, int], ...], name: str
    ) -> Recipe:
        self._check_quotas(rules, name)
        # Who asks for diversity alone means that which works best.
        shared = rules.calibrate or rules.exposure
        method = rules.rerank or (CALIBRATED if shared else DPP if rules.diversity else SCORE)
        diversity = DEFAULT_WEIGHTS.get(method, 0.0) if rules.diversity is None else rules.diversity
        if method == SCORE or diversity == 0:
            method, diversity = SCORE, 0.0
        if method == CALIBRATED and not shared:
            expected = "an attribute of the catalogue where rerank is calibrated"
            raise InvalidRequest(f"{name}.calibrate", found=rules.calibrate, expected=expected)
        catalogue, which = self._catalogue, f"{name}.{'calibrate' if rules.calibrate else 'exposure'}"
        return Recipe(
            method=method,
            diversity=diversity,
            novelty=rules.novelty or 0.0,
            caps=self._caps.get(caps, lambda: caps_of(catalogue, caps, f"{name}.caps")) if caps else None,
            boosts=self._boosts.get(boosts, lambda: self._make_boosts(rules.boosts, name))
            if boosts
            else None,
            min_score=rules.min_score,
            n_candidates=rules.candidates or DEFAULT_CANDIDATES,
            categories=self._categories.get(shared, lambda: categories_of(catalogue, shared, which))
            if method == CALIBRATED
            else None,
            quotas=_in_order(rules.quotas),
            serendipity=rules.serendipity or 0.0,
            by_merit=bool(rules.exposure),
        )

    def _check_quotas(self, rules: Rules, name: str) -> None:
        for source, _ in _in_order(rules.quotas):
            if source not in self._sources:
                raise InvalidRequest(
                    f"{name}.quotas",
                    found=source,
                    expected=f"a source that the bundle has: {', '.join(self._sources)}",
                    cure="Export the bundle again.",
                )

    def _make_boosts(self, boosts: Sequence[Boost], name: str) -> NDArray[np.float32]:
        total = np.zeros(len(self._catalogue), np.float32)
        for i, boost in enumerate(boosts):
            mask = self._filters.compile(boost.filter, f"{name}.boosts[{i}].filter").allow.mask
            total += np.where(mask, np.float32(boost.weight), np.float32(0.0))
        return total

    def _pins(
        self,
        pins: Sequence[Pin],
        request: Request,
        recipe: Recipe,
        allowed: CompiledFilter | None,
        shown: NDArray[np.int32],
    ) -> tuple[tuple[tuple[int, int], ...], tuple[str, ...]]:
        """Returns the pins that filter, exclusions and caps leave, by rank, and a warning about others.

        Those that were shown are none of these.
        """
        left = None if recipe.caps is None else recipe.caps.limits.copy()
        kept: list[tuple[int, int]] = []
        index_of = self._catalogue.vocabulary.index_of
        in_time = [pin for pin in pins if pin.rank <= request.k]
        if in_time and len(shown):
            in_time = [pin for pin in in_time if index_of(pin.item_id) not in shown]
        for pin in sorted(in_time, key=lambda pin: pin.rank):
            item = index_of(pin.item_id)
            if item < 0 or pin.item_id in request.exclude or (allowed and not allowed.allow.mask[item]):
                continue
            if recipe.caps is not None and left is not None:
                groups = recipe.caps.groups[recipe.caps.indptr[item] : recipe.caps.indptr[item + 1]]
                if (left[groups] <= 0).any():
                    continue
                left[groups] -= 1
            kept.append((pin.rank, item))
        n_lost = len(in_time) - len(kept)
        lost = f"{n_lost} of {len(in_time)} pinned items are unknown, or kept out by filter, exclusion or cap"
        return tuple(kept), (lost,) if n_lost else ()


def _in_order(quotas: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    """Returns the quotas above 0 in the order of the sources: the wire does not keep that of a map."""
    return tuple((source, quotas[source]) for source in SOURCES if quotas.get(source))


def _has(bundle: Bundle, source: str) -> bool:
    """Whether a bundle has what the source ``source`` reads."""
    manifest = bundle.manifest
    needs = {
        # Numbers all point the same way.
        SOURCE_SIMILAR: manifest.embedding_size > 1,
        SOURCE_SEGMENT: manifest.segments is not None,
        SOURCE_NEW: layout.FIRST_SEEN in manifest.files,
        SOURCE_QUERY_TEXT: manifest.text_encoder is not None,
    }
    return needs.get(source, True)
