"""The ranker of a bundle, as the manifest describes it: graph, features, what its logits mean."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

from recserve.engine.bundle.request_features import CATEGORY, CONTEXT_KINDS, USER_KINDS, RequestFeature
from recserve.errors import BundleInvalid, BundleReason

_wrong_field = partial(BundleInvalid, reason=BundleReason.MANIFEST_FIELD)


CLICK, RATING = "click", "rating"
SIGMOID, ISOTONIC, LINEAR = "sigmoid", "isotonic", "linear"
MAX_RANKER_HISTORY = 10_000
# Of the difference between a recorded output and the same inference here: other hardware moves the last bits
# of float32, never the third digit; a quantised graph may move by the error that the gate saw.
MIN_GOLDEN_TOLERANCE, MAX_GOLDEN_TOLERANCE = 1e-3, 0.5


@dataclass(frozen=True, slots=True)
class CalibrationEntry:
    """What a target's logit means. sigmoid: σ(x[0]·logit + y[0]), a probability. isotonic: linear between the
    points (x, y), a probability. linear: x[0]·logit + y[0] within ``low`` and ``high``, as a rating.
    """

    method: str
    x: list[float]
    y: list[float]
    low: float = 0.0
    high: float = 1.0


@dataclass(frozen=True, slots=True)
class RankerEntry:
    """The second stage, an ONNX graph.

    Inputs: ``history`` int64 (batch, length) item indices, newest last, −1 where padded (only when
    ``max_history`` is above 0); ``user`` int64 (batch, n_user_features); ``context`` int64 (batch,
    n_context_features; only when there are some); ``candidates`` int64 (batch, n_candidates) item indices.
    Output: ``logits`` float32 (batch, n_candidates, n_targets).

    ``users``: int64 array (n_users, n_user_features), rows aligned with the stored histories. ``golden``:
    recorded inputs and outputs, which the loader replays and which must come back within
    ``golden_tolerance``. ``form``: fp32, int8 or fp16; ``gate``: its figures (``exporters.ranker_forms``).
    """

    graph: str
    golden: str
    users: str
    targets: list[str]
    max_history: int
    user_features: list[RequestFeature]
    context_features: list[RequestFeature]
    calibration: dict[str, CalibrationEntry]
    model: str
    size_bytes: int
    metrics: dict[str, float] = field(default_factory=dict)
    gate: dict[str, float] = field(default_factory=dict)
    form: str = "fp32"
    golden_tolerance: float = MIN_GOLDEN_TOLERANCE

    def check(self, files: Mapping[str, object]) -> None:
        """Raises :class:`BundleInvalid` naming the first wrong field; ``files``: those of the manifest."""
        features = [*self.user_features, *self.context_features]
        vocabularies = [feature.vocabulary for feature in features if feature.kind == CATEGORY]
        for path in (self.graph, self.golden, self.users, *vocabularies):
            if path not in files:
                raise _wrong_field(
                    "a file of the ranker", found=path or "not named", expected="one listed in files"
                )
        if not self.targets or len(set(self.targets)) != len(self.targets):
            raise _wrong_field("targets of the ranker", found=self.targets, expected="distinct names")
        if set(self.calibration) != set(self.targets):
            raise _wrong_field(
                "calibration of the ranker", found=sorted(self.calibration), expected="one of each target"
            )
        if not 0 <= self.max_history <= MAX_RANKER_HISTORY:
            raise _wrong_field(
                "max_history of the ranker", found=self.max_history, expected=f"0 to {MAX_RANKER_HISTORY}"
            )
        if not MIN_GOLDEN_TOLERANCE <= self.golden_tolerance <= MAX_GOLDEN_TOLERANCE:
            raise _wrong_field(
                "golden_tolerance of the ranker",
                found=self.golden_tolerance,
                expected=f"{MIN_GOLDEN_TOLERANCE} to {MAX_GOLDEN_TOLERANCE}",
            )
        names = [feature.name for feature in features]
        if len(set(names)) != len(names):
            raise _wrong_field("features of the ranker", found=names, expected="distinct names")
        for kinds, group in ((USER_KINDS, self.user_features), (CONTEXT_KINDS, self.context_features)):
            for feature in group:
                feature.check(kinds)
        for target, calibration in self.calibration.items():
            _check_calibration(target, calibration)


def _check_calibration(target: str, calibration: CalibrationEntry) -> None:
    x, y, method = calibration.x, calibration.y, calibration.method
    if method not in (SIGMOID, ISOTONIC, LINEAR):
        raise _wrong_field(
            f"calibration of {target}", found=method, expected=f"{SIGMOID}, {ISOTONIC} or {LINEAR}"
        )
    is_curve = method == ISOTONIC
    if len(x) != len(y) or (len(x) < 2 if is_curve else len(x) != 1):
        raise _wrong_field(
            f"points of the calibration of {target}",
            found=f"{len(x)} and {len(y)}",
            expected="as many x as y",
        )
    if is_curve and any(a > b for values in (x, y) for a, b in pairwise(values)):
        raise _wrong_field(
            f"points of the calibration of {target}", found="falling", expected="never falling"
        )
