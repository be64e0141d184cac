"""The second stage: candidates in the order of what the request asks to be predicted.

A request names one prediction (``predict``) or weighs several (``weights``); both become weights of the
columns that a ranker, retrieval and the catalogue have.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from recserve.engine.bundle import Bundle
from recserve.engine.bundle.attributes import NUMBER
from recserve.engine.bundle.histories import History
from recserve.engine.bundle.ranker_entry import CLICK
from recserve.engine.ranker import Ranker
from recserve.engine.types import Request
from recserve.errors import InvalidRequest, nearest

# The values of ``predict`` besides the targets: click probability at this moment, and no second stage at all.
CONTEXT, RETRIEVAL = "context", "retrieval"
MAX_WEIGHTS = 32
_INT32_MAX = np.int32(0x7FFFFFFF)


@dataclass(frozen=True, slots=True)
class Objective:
    """What a request is ranked by: weights of targets, retrieval's score and numbers of items.

    ``with_context``: whether the moment is told to the ranker. Without weights there is nothing to rank.
    """

    weights: Mapping[str, float]
    with_context: bool = True


@dataclass(frozen=True, slots=True)
class RankStage:
    """Orders candidates of one bundle; ``n_candidates``: what retrieval should bring."""

    bundle: Bundle
    ranker: Ranker
    n_candidates: int
    # Numbers of items by attribute, read when a request first weighs them; two threads read the same.
    _numbers: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    def objective(self, request: Request) -> Objective | None:
        """Returns what ``request`` asks for, None for the order of retrieval.

        Raises :class:`InvalidRequest` for a prediction or weight that the bundle does not have.
        """
        if request.weights:
            return Objective(self._checked(request))
        predict = request.predict or (CONTEXT if self.ranker.entry.context_features else CLICK)
        if predict == RETRIEVAL:
            return None
        offered = self.offered()
        if predict not in offered:
            raise InvalidRequest(
                "predict",
                found=predict,
                expected=f"one of {', '.join(offered)}",
                cure=nearest(predict, offered),
            )
        if predict in (CONTEXT, CLICK):
            return Objective({CLICK: 1.0}, with_context=predict == CONTEXT)
        return Objective({predict: 1.0})

    def offered(self) -> list[str]:
        """Returns the values that ``predict`` may have."""
        with_context = [CONTEXT] if self.ranker.entry.context_features else []
        return [*with_context, *self.ranker.targets, RETRIEVAL]

    def _checked(self, request: Request) -> dict[str, float]:
        if request.predict:
            raise InvalidRequest("predict", found=request.predict, expected="empty where weights are given")
        if len(request.weights) > MAX_WEIGHTS:
            raise InvalidRequest(
                "weights", found=f"{len(request.weights)} entries", expected=f"at most {MAX_WEIGHTS}"
            )
        known = [*self.ranker.targets, RETRIEVAL]
        for name, weight in request.weights.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not np.isfinite(weight):
                raise InvalidRequest(f"weights[{name}]", found=weight, expected="a finite number")
            if name not in known and self._of_items(name) is None:
                raise InvalidRequest(
                    "weights",
                    found=name,
                    expected=f"{', '.join(known)} or a numeric attribute of the items",
                    cure=nearest(name, known),
                )
        return dict(request.weights)

    def check(self, request: Request) -> None:
        """Raises :class:`InvalidRequest` for what :meth:`objective` and the features cannot take."""
        self.objective(request)
        if request.context:
            self.ranker.user("", request.context)
            self.ranker.context(request.context, 0)

    def predict(
        self,
        requests: Sequence[Request],
        objectives: Sequence[Objective],
        histories: Sequence[History],
        candidates: Sequence[NDArray[np.int32]],
        now: int,
    ) -> list[NDArray[np.float64]]:
        """Returns the predictions (n, n_targets) of each request's ``candidates`` (n,), in one batch.

        ``now``: seconds since the epoch.
        """
        users = np.array([self.ranker.user(request.user_id, request.context) for request in requests])
        contexts = np.array([self.ranker.context(request.context, now) for request in requests])
        for context, objective in zip(contexts, objectives, strict=True):
            if not objective.with_context:
                context[:] = 0
        lengths = [len(items) for items in candidates]
        padded = np.zeros((len(candidates), max(lengths)), np.int64)
        for row, items in zip(padded, candidates, strict=True):
            row[: len(items)] = items
        predictions = self.ranker.predict(users, contexts, histories, padded)
        return [predictions[i, :length] for i, length in enumerate(lengths)]

    def score(
        self,
        objective: Objective,
        predictions: NDArray[np.float64],
        items: NDArray[np.int32],
        retrieval_scores: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """Returns the weighted sum for each of ``items`` (n,); an attribute that one lacks counts as 0."""
        total = np.zeros(len(items))
        for name, weight in objective.weights.items():
            if name in self.ranker.targets:
                column: NDArray[np.floating] = predictions[:, self.ranker.targets.index(name)]
            elif name == RETRIEVAL:
                column = retrieval_scores
            else:
                numbers = self._of_items(name)
                column = np.zeros(len(items)) if numbers is None else numbers[items]
            total += weight * column
        return total.astype(np.float32)

    def _of_items(self, name: str) -> NDArray[np.float64] | None:
        if name not in self._numbers:
            catalogue = self.bundle.catalogue
            if name not in catalogue.attribute_names:
                return None
            attribute = catalogue.attribute(name)
            if attribute is None or attribute.kind != NUMBER or attribute.indptr is not None:
                return None
            self._numbers[name] = np.where(attribute.known, attribute.values, 0).astype(np.float64)
        return self._numbers[name]


def best_first(
    scores: NDArray[np.float32], items: NDArray[np.int32]
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Returns both in descending order of score, ties in the order of ``item_index``."""
    # One integer for both, the score (as an integer that falls as it grows) above the item: NumPy sorts such
    # with vector instructions, and there are no ties to settle. 0.0 is added to make −0.0 a 0.0.
    bits = (scores + np.float32(0.0)).view(np.int32)
    keys = (~(bits ^ (bits >> 31) & _INT32_MAX)).astype(np.int64) << 32 | items
    keys.sort()
    bits = ~(keys >> 32).astype(np.int32)
    ordered = (bits ^ (bits >> 31) & _INT32_MAX).view(np.float32)
    return ordered, (keys & 0xFFFFFFFF).astype(np.int32)


def refuse_without_ranker(request: Request) -> None:
    """Raises :class:`InvalidRequest` when ``request`` asks for a prediction of a bundle that makes none."""
    asked = ", ".join(request.weights) or request.predict
    if asked and asked != RETRIEVAL:
        raise InvalidRequest(
            "predict" if request.predict else "weights",
            found=asked,
            expected=f"{RETRIEVAL} or nothing, since the bundle has no ranker",
            cure="Export it with --ranker.",
        )
