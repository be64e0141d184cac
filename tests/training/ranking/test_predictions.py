"""Metrics of predictions, by brute force and by hand, and calibration by its laws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recserve.errors import DataError, InvalidRequest
from recserve.training.ranking.calibration import IDENTITY, fit_calibration, fit_isotonic, sigmoid
from recserve.training.ranking.metrics import auc, ece, gauc, logloss

# A few distinct scores, so that ties are common.
SCORED = st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.integers(0, 2)), min_size=2, max_size=40)


def pair_share(scores: np.ndarray, clicks: np.ndarray) -> float:
    wins = [(a > b) + 0.5 * (a == b) for a in scores[clicks] for b in scores[~clicks]]
    return float(np.mean(wins))


@settings(derandomize=True, deadline=None)
@given(SCORED)
def test_auc_is_the_share_of_pairs_in_order(scored: list[tuple[int, bool, int]]) -> None:
    scores, clicks, users = (np.array(column) for column in zip(*scored, strict=True))
    if clicks.all() or not clicks.any():
        with pytest.raises(DataError, match="clicks and misses"):
            auc(scores, clicks)
        return
    assert auc(scores, clicks) == pytest.approx(pair_share(scores, clicks))
    assert auc(-scores, clicks) == pytest.approx(1 - auc(scores, clicks))
    of_users = [
        (pair_share(scores[users == u], clicks[users == u]), np.sum(users == u))
        for u in np.unique(users)
        if 0 < clicks[users == u].sum() < np.sum(users == u)
    ]
    if of_users:
        values, weights = zip(*of_users, strict=True)
        assert gauc(scores, clicks, users) == pytest.approx(np.average(values, weights=weights))
    else:
        assert np.isnan(gauc(scores, clicks, users))


def test_logloss_and_ece_by_hand() -> None:
    p, y = np.array([0.9, 0.8, 0.3, 0.1]), np.array([1.0, 0.0, 0.0, 0.0])
    assert logloss(p, y) == pytest.approx(-np.mean(np.log([0.9, 0.2, 0.7, 0.9])))
    # One bin: the mean prediction is 0.525, a quarter of the examples is a click.
    assert ece(p, y, n_bins=1) == pytest.approx(0.275)
    assert ece(p, y, n_bins=2) == pytest.approx(((1.7 - 1) + 0.4) / 4)
    assert np.isfinite(logloss(np.array([0.0, 1.0]), np.array([1.0, 0.0])))


@pytest.mark.parametrize("metric", [auc, logloss, ece])
def test_what_is_no_prediction_is_refused(metric: object) -> None:
    with pytest.raises(InvalidRequest, match="two flat arrays"):
        metric(np.zeros(2), np.zeros(3))  # type: ignore[operator]
    with pytest.raises(DataError, match="NaN"):
        metric(np.array([np.nan, 0.5]), np.array([1.0, 0.0]))  # type: ignore[operator]


@pytest.mark.parametrize("method", ["platt", "isotonic", "auto"])
def test_calibration_undoes_a_known_distortion(method: str) -> None:
    rng = np.random.default_rng(3)
    truth = rng.normal(size=20_000)
    clicks = (rng.random(len(truth)) < sigmoid(truth)).astype(np.float64)
    # Twice as sure as it should be, and shifted.
    logits = 2 * truth + 1.5
    assert ece(sigmoid(logits), clicks) > 0.1
    fitted = fit_calibration(logits[:10_000], clicks[:10_000], method)
    # A perfect probability has about 0.014 on so few examples.
    assert ece(fitted.apply(logits[10_000:]), clicks[10_000:]) < 0.03


@settings(derandomize=True, deadline=None)
@given(st.lists(st.tuples(st.floats(-30, 30), st.booleans()), min_size=2, max_size=300))
def test_a_calibrated_probability_never_falls_where_the_logit_rises(pairs: list[tuple[float, bool]]) -> None:
    logits, clicks = (np.array(column, np.float64) for column in zip(*pairs, strict=True))
    grid = np.linspace(-40, 40, 400)
    for method in ("platt", "isotonic", "auto"):
        p = fit_calibration(logits, clicks, method).apply(grid)
        assert ((p >= 0) & (p <= 1)).all()
        assert (np.diff(p) >= 0).all()


def test_isotonic_keeps_the_order_of_distinct_logits() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=3000)
    clicks = (rng.random(3000) < sigmoid(logits)).astype(np.float64)
    p = fit_isotonic(logits, clicks).apply(np.sort(logits))
    assert auc(p, clicks[np.argsort(logits)]) == pytest.approx(auc(logits, clicks), abs=2e-3)


def test_labels_of_one_kind_leave_logits_as_they_are() -> None:
    assert fit_calibration(np.zeros(5), np.ones(5)) == IDENTITY
    with pytest.raises(InvalidRequest, match="calibration is temperature"):
        fit_calibration(np.zeros(5), np.ones(5), "temperature")
