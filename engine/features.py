"""From a request's external ids to the arrays that the stages work on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recserve.engine.bundle import Bundle
from recserve.engine.bundle.histories import EMPTY_HISTORY, History, check_value
from recserve.engine.bundle.ids import check_id, check_timestamp
from recserve.engine.config import EngineConfig
from recserve.engine.explain.explanation import EXPLAIN_LEVELS, EXPLAIN_NONE
from recserve.engine.filters.compiler import CompiledFilter
from recserve.engine.slate.paging import read_token
from recserve.engine.slate.plan import NO_ITEMS, Plan, Planner
from recserve.engine.state.history import HistoryStore
from recserve.engine.types import Request
from recserve.errors import InvalidRequest, nearest
from recserve.kernels import pad_lists

MAX_CONTEXT = 64
SECONDS_PER_HOUR = 3600
MAX_SEED = (1 << 63) - 1
MAX_BUDGET_MS = 3_600_000


# Not frozen: one is made per request, and freezing triples the time that takes.
@dataclass(slots=True)
class ResolvedRequest:
    """A request in the engine's own terms.

    ``history``: items (n,) int32 and timestamps, newest last, all known; ``exclude``: (m,) int32, unsorted
    and repeated as they come: the seen items, unless the caller wants those, and those of earlier pages too;
    ``warnings``: what was ignored; ``allowed``: the only items that may come back, None for no restriction;
    ``plan``: what is done with the candidates, None where the best are the slate; ``kept_out``: of the
    excluded, those that may not even be pinned: gone, on earlier pages, or (``too_often``) shown too often.
    """

    k: int
    history: History
    exclude: NDArray[np.int32]
    warnings: tuple[str, ...]
    n_ignored_items: int
    allowed: CompiledFilter | None = None
    plan: Plan | None = None
    kept_out: NDArray[np.int32] = field(default_factory=lambda: NO_ITEMS)
    too_often: NDArray[np.int32] = field(default_factory=lambda: NO_ITEMS)

    @property
    def n_candidates(self) -> int:
        """How many items retrieval finds: those of the slate, or those that it is chosen from."""
        return self.k if self.plan is None else self.plan.n_candidates(self.k)

    @property
    def boosts(self) -> NDArray[np.float32] | None:
        """(n_items,) float32 added to all scores, None for none."""
        return None if self.plan is None else self.plan.recipe.boosts


def check_page(rows: Mapping[str, Request], check: Callable[[Request], None], max_k: int) -> None:
    """Raises :class:`InvalidRequest` for a row of a page that ``check`` refuses, and for too many items."""
    for name, request in rows.items():
        try:
            check_id("name", name)
            check(request)
        except InvalidRequest as error:
            where = f"rows[{name}].{error.name}"
            raise InvalidRequest(
                where, found=error.found, expected=error.expected, cure=error.cure
            ) from error
    n_items = sum(request.k for request in rows.values())
    if n_items > max_k:
        raise InvalidRequest("k of the rows", found=n_items, expected=f"at most {max_k} together")


def check_request(request: Request, bundle: Bundle, config: EngineConfig, planner: Planner) -> None:
    """Raises :class:`InvalidRequest` naming the first field that no answer could satisfy."""
    check_k(request.k, config)
    if request.user_id != "":
        check_id("user_id", request.user_id)
    history = () if request.history is None else request.history
    if history != ():
        check_ids("history", history, config.max_history)
    if request.exclude != ():
        check_ids("exclude", request.exclude, config.max_exclude)
    if len(request.history_timestamps) or len(request.history_values):
        _check_beside_history(request, len(history))
    if len(request.context) > MAX_CONTEXT:
        raise InvalidRequest(
            "context", found=f"{len(request.context)} entries", expected=f"at most {MAX_CONTEXT}"
        )
    if request.variant:
        check_variant(request.variant, bundle)
    if request.explain != EXPLAIN_NONE:
        offered = EXPLAIN_LEVELS[: EXPLAIN_LEVELS.index(config.explain) + 1]
        if request.explain not in offered:
            raise InvalidRequest("explain", found=request.explain, expected=f"one of {', '.join(offered)}")
    if request.rules is not None:
        for i, pin in enumerate(request.rules.pins):
            check_id(f"rules.pins[{i}].item_id", pin.item_id)
    if request.filter or request.rules is not None:
        planner.check(request)
    if request.page_token is not None:
        read_token(request)
    if request.seed is not None:
        _check_whole("seed", request.seed, 0, MAX_SEED)
    if request.budget_ms is not None:
        _check_whole("budget_ms", request.budget_ms, 1, MAX_BUDGET_MS)


def _check_beside_history(request: Request, n_items: int) -> None:
    for name in ("history_timestamps", "history_values"):
        if (length := len(getattr(request, name))) not in (0, n_items):
            raise InvalidRequest(
                name, found=f"{length} long", expected=f"empty or as long as history ({n_items})"
            )
    for i, timestamp in enumerate(request.history_timestamps):
        check_timestamp(f"history_timestamps[{i}]", timestamp)
    for i, value in enumerate(request.history_values):
        check_value(f"history_values[{i}]", value)


def check_k(k: int, config: EngineConfig) -> None:
    """Raises :class:`InvalidRequest` unless ``k`` is an integer in 1..max_k."""
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 1 <= k <= config.max_k:
        raise InvalidRequest("k", found=k, expected=f"1 to {config.max_k}")


def _check_whole(name: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value <= high:
        raise InvalidRequest(name, found=value, expected=f"a whole number from {low} to {high}")


def check_ids(name: str, ids: Sequence[str], limit: int) -> None:
    """Raises :class:`InvalidRequest` unless ``ids`` is a sequence of at most ``limit`` valid ids."""
    # A lone string is a sequence of characters: the classic mistake.
    if isinstance(ids, str) or not isinstance(ids, Sequence | np.ndarray):
        raise InvalidRequest(name, found=ids, expected="a list of item ids")
    if len(ids) > limit:
        raise InvalidRequest(name, found=f"{len(ids)} items long", expected=f"at most {limit} items")
    for i, id_ in enumerate(ids):
        check_id(f"{name}[{i}]", id_)


def check_variant(variant: str, bundle: Bundle) -> None:
    """Raises :class:`InvalidRequest` unless ``variant`` is empty (the default) or offered by the bundle."""
    offered = bundle.manifest.variants
    if variant and variant not in offered:
        raise InvalidRequest(
            "variant",
            found=variant,
            expected=f"one of {', '.join(sorted(offered))}",
            cure=nearest(variant, offered),
        )


def resolve(
    requests: Sequence[Request],
    bundle: Bundle,
    store: HistoryStore,
    planner: Planner,
    gone: NDArray[np.int32] = NO_ITEMS,
    now: int = 0,
) -> list[ResolvedRequest]:
    """Turns checked requests into arrays; unknown items are dropped with a warning.

    ``gone``: (n,) int32, items that nobody gets; ``now``: seconds since the epoch.
    """
    remembered = iter(store.get_many([r.user_id for r in requests if r.history is None]))
    resolved = []
    for request in requests:
        history, often = next(remembered) if request.history is None else None, NO_ITEMS
        if history is not None and not len(gone) and _asks_nothing(request, planner):
            seen = NO_ITEMS if request.include_seen else history.items
            resolved.append(ResolvedRequest(request.k, history, seen, (), 0, None, None, NO_ITEMS, NO_ITEMS))
            continue
        frequency = planner.frequency(request)
        if frequency is not None and request.user_id:
            since = now - frequency.hours * SECONDS_PER_HOUR
            often = store.too_often(request.user_id, frequency.impressions, since)
        resolved.append(_resolve(request, bundle, history, planner, gone, often))
    return resolved


def _asks_nothing(request: Request, planner: Planner) -> bool:
    """Whether all that a request says is who asks: most do, and are resolved in no time."""
    return (
        planner.is_plain(request)
        and not len(request.exclude)
        and not request.context
        and not request.page_token
    )


def _resolve(
    request: Request,
    bundle: Bundle,
    history: History | None,
    planner: Planner,
    gone: NDArray[np.int32],
    often: NDArray[np.int32],
) -> ResolvedRequest:
    vocabulary = bundle.catalogue.vocabulary
    warnings: list[str] = []
    n_ignored = 0
    if request.context:
        warnings += [
            f"context {key[:64]!r} is not used by this bundle"
            for key in request.context
            if key not in bundle.manifest.inputs.context
        ]
    if history is None:
        history, n_ignored = _given_history(request, bundle)
        if n_ignored:
            n_given = len(request.history or ())
            warnings.append(f"{n_ignored} of {n_given} history items are not in the catalogue")
    exclude = EMPTY_HISTORY.items if request.include_seen else history.items
    if len(request.exclude):
        asked = vocabulary.indices(request.exclude)
        known = asked[asked >= 0]
        if n_unknown := len(asked) - len(known):
            n_ignored += n_unknown
            warnings.append(f"{n_unknown} of {len(asked)} exclude items are not in the catalogue")
        exclude = np.concatenate([known, exclude])
    shown = np.concatenate([gone, often]) if len(often) else gone
    if request.page_token:
        token = read_token(request)
        shown = np.concatenate([shown, vocabulary.with_hashes(token.hashes)])
        if not token.is_of(bundle.manifest.bundle_version):
            warnings.append(
                "the bundle changed since the page before: what was shown stays out, the order is new"
            )
    if len(shown):
        exclude = np.concatenate([shown, exclude])
    allowed = planner.allowed(request)
    plan = planner.plan(request, allowed, shown)
    if plan is not None:
        warnings += plan.warnings
    return ResolvedRequest(
        request.k, history, exclude, tuple(warnings), n_ignored, allowed, plan, shown, often
    )


def _given_history(request: Request, bundle: Bundle) -> tuple[History, int]:
    """Returns the known part of a request's own history, and how many of its items are unknown."""
    found = bundle.catalogue.vocabulary.indices(request.history or ())
    known = found >= 0
    times = np.zeros(len(found), np.int64)
    if len(request.history_timestamps):
        times = np.asarray(request.history_timestamps, np.int64)
    values = np.asarray(request.history_values, np.float32) if len(request.history_values) else None
    return History(found, times, values=values).where(known), int(len(found) - known.sum())


def pad_histories(histories: Sequence[NDArray[np.int32]], max_history: int) -> NDArray[np.int32]:
    """Packs the newest items of each history into (batch, length) int32, left-padded with −1.

    ``length`` is that of the longest history, at most ``max_history``.
    """
    if len(histories) == 1:
        return np.ascontiguousarray(histories[0][-max_history:])[None]
    values, ends, lengths = newest_items(histories, max_history)
    return pad_lists(values, ends, np.arange(len(histories)), int(lengths.max(initial=0)))


class Newest(NamedTuple):
    """The newest items of some histories: of the i-th ``values[ends[i - 1]:ends[i]]``, int32.

    ``ends`` and ``lengths``: (n,) int64.
    """

    values: NDArray[np.int32]
    ends: NDArray[np.int64]
    lengths: NDArray[np.int64]


def newest_items(histories: Sequence[NDArray[np.int32]], max_history: int) -> Newest:
    """Copies the ``max_history`` newest items of each history."""
    newest = [history[-max_history:] for history in histories]
    values = np.concatenate(newest, dtype=np.int32) if newest else NO_ITEMS
    lengths = np.array([len(items) for items in newest], np.int64)
    return Newest(values, lengths.cumsum(), lengths)


def pad_values(histories: Sequence[History], length: int) -> NDArray[np.float32]:
    """Packs ratings of the newest items into (batch, length) as :func:`pad_histories` does, NaN for none."""
    padded = np.full((len(histories), length), np.nan, np.float32)
    for row, history in zip(padded, histories, strict=True):
        if history.values is not None and len(newest := history.values[-length:]):
            row[-len(newest) :] = newest
    return padded


def pad_time_gaps(timestamps: list[NDArray[np.int64]], length: int, now: int) -> NDArray[np.float32]:
    """Packs the :func:`time_gaps` of each row's newest events into (batch, length), padded with 0."""
    gaps = np.zeros((len(timestamps), length), np.float32)
    for row, times in zip(gaps, timestamps, strict=True):
        if length and len(times):
            newest = times[-length:]
            row[-len(newest) :] = time_gaps(newest, now)
    return gaps


def time_gaps(timestamps: NDArray[np.int64], now: int) -> NDArray[np.float32]:
    """Returns the seconds from each event to the next, the newest to ``now``, of one or more events (n,).

    A missing time (0) and a clock that went back count as no gap.
    """
    # In whole seconds until the end: conversions on the way take longer than all the rest, and a history
    # alone waits for every step.
    apart = np.empty(len(timestamps), np.int64)
    np.subtract(timestamps[1:], timestamps[:-1], out=apart[:-1])
    apart[-1] = now - timestamps[-1]
    apart[(apart < 0) | (timestamps <= 0)] = 0
    return apart.astype(np.float32)
