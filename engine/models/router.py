"""Answers requests through the registry: by arm, counted, guarded, and shadowed after the answer."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import structlog

from recserve.engine.engine import Engine
from recserve.engine.models.guard import Breach, judge
from recserve.engine.models.registry import ActiveRoute, Lease, Registry
from recserve.engine.models.routing import Arm
from recserve.engine.models.shadow import Asked, ShadowRunner
from recserve.engine.page import PageCaps
from recserve.engine.ranked import Ranked
from recserve.engine.smaller import rank_smaller
from recserve.engine.types import SOURCE_MODEL, Request
from recserve.errors import InvalidRequest

log = structlog.get_logger("recserve.models")

A = TypeVar("A")


class Router:
    """Safe to call from any thread. ``on_rollback(model, breach)`` hears of a canary that was taken back."""

    def __init__(
        self,
        registry: Registry[Engine],
        *,
        on_rollback: Callable[[str, Breach], None] = lambda model, breach: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.registry = registry
        self.on_rollback = on_rollback
        self.shadow = ShadowRunner(registry)
        self._clock = clock

    def answer(
        self,
        requests: Sequence[Request],
        keys: Callable[[], Sequence[str]],
        *,
        model: str = "",
        version: str = "",
        degraded: bool = False,
        smaller: bool = False,
        deadlines: Sequence[float] = (),
    ) -> Iterator[tuple[list[int], list[Ranked | InvalidRequest]]]:
        """Yields rows of ``requests`` and their answers, one arm after the other, each from one version.

        ``keys()`` gives what assigns each request to an arm; asked only when there are several. A request
        that names a variant gets it from whatever version its arm has. ``version``: asks that arm, whoever
        calls; raises :class:`UnknownModel` when no arm has it. ``degraded``: as in Engine.rank_each;
        ``smaller``: by rank_smaller. Such answers say nothing about an arm and are neither counted for it nor
        shadowed. ``deadlines``: of the requests, by ``time.monotonic``; who is in haste is answered before
        the others of the arm, who has a text that takes long to read after them.
        """
        with self.registry.lease(model) as lease:
            route = lease.route.only(version) if version else lease.route
            assigned = route.assign(keys() if route.is_split else [""] * len(requests))
            for arm, rows in _in_turn(lease, assigned, [] if degraded else requests, deadlines):
                asked = [for_arm(requests[i], arm) for i in rows]
                start = self._clock()
                until = [deadlines[i] for i in rows] if deadlines else None
                answers = self._ask(lease, arm, asked, degraded, until, smaller)
                if degraded or smaller:
                    yield rows, answers
                    continue
                seconds = self._clock() - start
                ranked = [answer for answer in answers if isinstance(answer, Ranked)]
                self._record(lease.active, arm, ranked, seconds)
                yield rows, answers
                if lease.route.shadow:
                    self.shadow.offer(
                        Asked(lease.active, request, answer, seconds)
                        for request, answer in zip(asked, answers, strict=True)
                        if isinstance(answer, Ranked)
                    )

    def answer_page(
        self,
        rows: Mapping[str, Request],
        key: str,
        *,
        model: str = "",
        caps: PageCaps = None,
        deadline: float = math.inf,
    ) -> list[Ranked]:
        """Answers the rows of one page, all from the arm of the caller ``key``; see Engine.recommend_page."""
        with self.registry.lease(model) as lease:
            [(arm, _)] = lease.route.assign([key])
            start = self._clock()
            asked = {name: for_arm(request, arm) for name, request in rows.items()}
            try:
                answers = lease.engine(arm).rank_page(asked, caps=caps, deadline=deadline)
            except InvalidRequest:
                raise
            except Exception:
                self._record(lease.active, arm, [], 0.0, errors=1)
                raise
            self._record(lease.active, arm, answers, self._clock() - start)
            return [replace(one, arm=arm.name) for one in answers] if lease.route.is_split else answers

    def close(self) -> None:
        """Ends the shadow traffic."""
        self.shadow.close()

    def _ask(
        self,
        lease: Lease[Engine],
        arm: Arm,
        requests: list[Request],
        degraded: bool,
        deadlines: Sequence[float] | None,
        smaller: bool,
    ) -> list[Ranked | InvalidRequest]:
        try:
            engine = lease.engine(arm)
            if smaller:
                answers = rank_smaller(engine, requests)
            else:
                answers = engine.rank_each(requests, degraded=degraded, deadlines=deadlines)
        except Exception:
            if len(requests) == 1:
                # The rows of a larger batch are asked again, each alone.
                self._record(lease.active, arm, [], 0.0, errors=1)
            raise
        if not lease.route.is_split:
            return answers
        return [replace(one, arm=arm.name) if isinstance(one, Ranked) else one for one in answers]

    def _record(
        self,
        active: ActiveRoute[Engine],
        arm: Arm,
        answers: Sequence[Ranked],
        seconds: float,
        errors: int = 0,
    ) -> None:
        now = self._clock()
        by_model = sum(answer.source == SOURCE_MODEL for answer in answers)
        active.windows[arm.name].record(
            now, answered=len(answers), by_model=by_model, errors=errors, seconds=seconds
        )
        guard, baseline = active.route.guard, active.route.arms[0]
        if guard is None or arm is baseline:
            return
        breach = judge(
            arm.name, active.windows[arm.name].stats(now), active.windows[baseline.name].stats(now), guard
        )
        if breach and self.registry.set_route(active.model, active.route.baseline_only(), instead_of=active):
            log.warning(
                "canary rolled back",
                model=active.model,
                version=arm.version,
                reason=breach.reason,
                found=round(breach.found, 6),
                limit=round(breach.limit, 6),
            )
            self.on_rollback(active.model, breach)


def _in_turn(
    lease: Lease[Engine],
    assigned: list[tuple[Arm, list[int]]],
    requests: Sequence[Request],
    deadlines: Sequence[float],
) -> Iterator[tuple[Arm, list[int]]]:
    """Yields arms and rows: a batch is answered when all of it is done.

    Those in haste come first and apart, those with a text that takes long to read last and alone; where no
    ``requests`` are given no text is read.
    """
    for arm, rows in assigned:
        engine = lease.engine(arm)
        alone = [rows[place] for place in engine.better_alone([requests[i] for i in rows if requests])]
        others = [row for row in rows if row not in alone] if alone else rows
        if deadlines and others:
            hasty = [others[place] for place in engine.in_haste([deadlines[i] for i in others])]
            if hasty:
                yield arm, hasty
                others = [row for row in others if row not in hasty]
        if others:
            yield arm, others
        for row in alone:
            yield arm, [row]


def for_arm(request: Request, arm: Arm) -> Request:
    """Returns what ``arm`` is asked: of its variant, unless the request names one."""
    return replace(request, variant=arm.variant) if arm.variant and not request.variant else request
