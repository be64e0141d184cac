"""Online steps against their twins, the lines of the paper, and a regression solved at once."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recserve.errors import InvalidRequest
from recserve.kernels import ftrl_steps, linear_steps, linear_widths, reference

RATES: dict[str, Any] = {"alpha": 0.1, "beta": 1.0, "l1": 0.02, "l2": 0.5}
N_FEATURES = 12


def examples(seed: int, n: int) -> Any:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 6, n)
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    indices = rng.integers(0, N_FEATURES, indptr[-1]).astype(np.int32)
    return (indptr, indices), rng.standard_normal(len(indices)), rng.random(n) < 0.4


def fresh() -> Any:
    return (np.zeros(N_FEATURES), np.zeros(N_FEATURES)), np.zeros(N_FEATURES, np.float32)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(0, 40))
def test_ftrl_equals_the_reference(seed: int, n: int) -> None:
    (state, weights), (their_state, their_weights) = fresh(), fresh()
    losses = ftrl_steps(state, weights, *examples(seed, n), **RATES)
    expected = reference.ftrl_steps(their_state, their_weights, *examples(seed, n), **RATES)
    np.testing.assert_allclose(losses, expected, rtol=1e-10)
    np.testing.assert_allclose(state, their_state, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(weights, their_weights, rtol=1e-6, atol=1e-9)


def dictionary_steps(
    rows: list[dict[int, float]], labels: list[bool]
) -> tuple[dict[int, float], list[float]]:
    """Algorithm 1 over dictionaries, as optim.FTRLProximal of River 0.26.1 has it.

    With l1 = 0 River gives these probabilities to 1e-12 where its weights are brought up to date before a
    prediction (a step of gradient 0): left alone it predicts with the weights of one step before.
    """
    z: dict[int, float] = {}
    n: dict[int, float] = {}
    probabilities = []

    def weight(feature: int) -> float:
        if abs(z.get(feature, 0.0)) <= RATES["l1"]:
            return 0.0
        sign = 1.0 if z[feature] > 0 else -1.0
        pull = (RATES["beta"] + n[feature] ** 0.5) / RATES["alpha"] + RATES["l2"]
        return -(z[feature] - sign * RATES["l1"]) / pull

    for row, label in zip(rows, labels, strict=True):
        before = {feature: weight(feature) for feature in row}
        margin = sum(before[feature] * value for feature, value in row.items())
        probabilities.append(1 / (1 + np.exp(-margin)))
        for feature, value in row.items():
            gradient = (probabilities[-1] - label) * value
            old = n.get(feature, 0.0)
            n[feature] = old + gradient**2
            step = (n[feature] ** 0.5 - old**0.5) / RATES["alpha"]
            z[feature] = z.get(feature, 0.0) + gradient - step * before[feature]
    return {feature: weight(feature) for feature in z}, probabilities


def distinct_rows(seed: int, n: int) -> tuple[list[dict[int, float]], list[bool]]:
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        features = rng.choice(N_FEATURES, rng.integers(1, 6), replace=False)
        rows.append({int(f): float(rng.standard_normal()) for f in features})
    return rows, (rng.random(n) < 0.4).tolist()


def as_arrays(rows: list[dict[int, float]], labels: list[bool]) -> Any:
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    indices = np.array([f for row in rows for f in row], np.int32)
    values = np.array([v for row in rows for v in row.values()])
    return (indptr, indices), values, np.array(labels)


def test_ftrl_predicts_and_learns_as_the_paper_says() -> None:
    rows, labels = distinct_rows(4, 300)
    expected, probabilities = dictionary_steps(rows, labels)
    state, weights = fresh()
    losses = ftrl_steps(state, weights, *as_arrays(rows, labels), **RATES)
    for loss, probability, label in zip(losses, probabilities, labels, strict=True):
        assert loss == pytest.approx(-np.log(probability if label else 1 - probability))
    assert weights == pytest.approx([expected.get(feature, 0.0) for feature in range(N_FEATURES)], abs=1e-7)


def test_strong_l1_leaves_rare_features_out() -> None:
    state, weights = fresh()
    ftrl_steps(state, weights, *examples(2, 60), **{**RATES, "l1": 3.0})
    assert 0 < np.count_nonzero(weights) < N_FEATURES


def impressions(seed: int, n: int, dim: int) -> tuple[Any, Any]:
    """Impressions, and the clicks on some of them later."""
    rng = np.random.default_rng(seed)
    rows, clicked = [], []
    waiting: list[Any] = []
    for _ in range(n):
        x = rng.standard_normal(dim)
        rows.append(x)
        clicked.append(False)
        if rng.random() < 0.4:
            waiting.append(x)
        if waiting and rng.random() < 0.5:
            rows.append(waiting.pop(0))
            clicked.append(True)
    return np.array(rows).reshape(-1, dim), np.array(clicked, np.bool_)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(0, 25), st.integers(1, 9))
def test_linear_steps_equal_the_reference_and_the_normal_equations(seed: int, n: int, dim: int) -> None:
    features, clicked = impressions(seed, n, dim)
    state, theirs = ((np.eye(dim) / 2.0, np.zeros(dim)) for _ in range(2))
    losses = linear_steps(state, features, clicked)
    np.testing.assert_allclose(losses, reference.linear_steps(theirs, features, clicked), atol=1e-8)
    np.testing.assert_allclose(state[0], theirs[0], atol=1e-8)
    shown = features[~clicked]
    moments = 2.0 * np.eye(dim) + shown.T @ shown
    solved = np.linalg.solve(moments, features[clicked].sum(axis=0))
    np.testing.assert_allclose(state[0], np.linalg.inv(moments), atol=1e-9)
    np.testing.assert_allclose(state[1], solved, atol=1e-9)
    widths = linear_widths(state[0], features)
    np.testing.assert_allclose(widths, reference.linear_widths(state[0], features), atol=1e-9)


def test_the_parts_of_a_batch_leave_the_state_of_the_whole() -> None:
    parts = [slice(0, 7), slice(7, 8), slice(8, 40)]
    features, clicked = impressions(3, 40, 5)
    whole, split = ((np.eye(5), np.zeros(5)) for _ in range(2))
    linear_steps(whole, features[:40], clicked[:40])
    (indptr, indices), values, labels = examples(3, 40)
    (at_once, weights), (in_parts, _) = fresh(), fresh()
    ftrl_steps(at_once, weights, (indptr, indices), values, labels, **RATES)
    for part in parts:
        linear_steps(split, features[part], clicked[part])
        start, stop = indptr[part.start], indptr[part.stop]
        some = (indptr[part.start : part.stop + 1] - start, indices[start:stop])
        ftrl_steps(in_parts, weights, some, values[start:stop], labels[part], **RATES)
    for one, other in ((whole, split), (at_once, in_parts)):
        assert all(a.tobytes() == b.tobytes() for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"l2": -1.0}, "l2 is -1.0"),
        ({"labels": np.zeros(1, np.float64)}, "labels is float64"),
        ({"values": np.full(2, np.nan)}, "values is float64"),
        (
            {"examples": (np.array([0, 2]), np.array([0, N_FEATURES], np.int32))},
            "feature_indices\\[1\\] is 12",
        ),
        ({"weights": np.zeros(3, np.float32)}, "weights is float32"),
    ],
)
def test_examples_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    state, weights = fresh()
    arguments: dict[str, Any] = {
        "weights": weights,
        "examples": (np.array([0, 2]), np.array([0, 1], np.int32)),
        "values": np.ones(2),
        "labels": np.ones(1, np.bool_),
        **RATES,
    }
    with pytest.raises(InvalidRequest, match=message):
        ftrl_steps(state, **(arguments | change))


@pytest.mark.parametrize(
    ("features", "clicked", "message"),
    [
        (np.ones((2, 3)), np.ones(2, np.bool_), "features is float64 of shape"),
        (np.full((1, 2), np.inf), np.ones(1, np.bool_), "expected finite"),
        (np.ones((2, 2)), np.ones(1, np.bool_), "clicked is bool"),
    ],
)
def test_features_that_do_not_fit_are_refused(features: Any, clicked: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        linear_steps((np.eye(2), np.zeros(2)), features, clicked)
