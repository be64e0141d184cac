"""FTRL as River and Vowpal Wabbit have it: the same losses, example by example."""

import numpy as np
import pytest

from recserve.kernels import ftrl_steps
from tests.kernels.test_online import RATES, as_arrays, distinct_rows, fresh

OURS = {**RATES, "l1": 0.0}


def losses_of(probabilities: list[float], labels: list[bool]) -> list[float]:
    return [
        -float(np.log(probability if label else 1 - probability))
        for probability, label in zip(probabilities, labels, strict=True)
    ]


def test_ftrl_is_that_of_river() -> None:
    linear_model, optim = pytest.importorskip("river.linear_model"), pytest.importorskip("river.optim")
    rows, labels = distinct_rows(4, 300)
    losses = ftrl_steps(*fresh(), *as_arrays(rows, labels), **OURS)
    optimizer = optim.FTRLProximal(**OURS)
    model = linear_model.LogisticRegression(optimizer=optimizer, intercept_lr=0.0)
    probabilities = []
    for row, label in zip(rows, labels, strict=True):
        # A step of gradient 0: left alone, River predicts with the weights of one step before.
        optimizer.step(model._weights, dict.fromkeys(row, 0.0))
        probabilities.append(model.predict_proba_one(row)[True])
        model.learn_one(row, label)
    np.testing.assert_allclose(losses, losses_of(probabilities, labels), rtol=1e-12)


def test_ftrl_is_that_of_vowpal_wabbit() -> None:
    vowpalwabbit = pytest.importorskip("vowpalwabbit")
    rows, labels = distinct_rows(5, 300)
    losses = ftrl_steps(*fresh(), *as_arrays(rows, labels), **OURS)
    rates = f"--ftrl_alpha {OURS['alpha']} --ftrl_beta {OURS['beta']} --l1 0 --l2 {OURS['l2']}"
    model = vowpalwabbit.Workspace(
        f"--ftrl {rates} --loss_function logistic --link logistic --noconstant --quiet"
    )
    probabilities = []
    for row, label in zip(rows, labels, strict=True):
        features = " ".join(f"{feature}:{value:.9g}" for feature, value in row.items())
        example = f"{1 if label else -1} | {features}"
        probabilities.append(model.predict(example))
        model.learn(example)
    # It computes in float32.
    np.testing.assert_allclose(losses, losses_of(probabilities, labels), atol=1e-5)
